"""The tools' configuration and consent against a real daemon: agentctl approve, deny, the question at a terminal, SIGKILL meanwhile."""
import os
import pty
import select
import subprocess
import time
import unittest

from harness import BIN, MODEL, Daemon, folder, wait_until

ASK = '[[rule]]\ntool = "bash"\nwhen = { command = "*wc*" }\naction = "ask"\nreason = "counts"\n'
TASK = "How many lines are in a.txt?"


def config(text):
    return folder({"agentd.toml": text}) / "agentd.toml"


class Tools(unittest.TestCase):
    def begin(self, daemon):
        """A session whose only call waits for consent, and the agentctl that follows it."""
        follower = daemon.begin("run", "--json", "--workspace", folder({"a.txt": "x\ny\nz\n"}), TASK)
        self.addCleanup(lambda: (follower.kill(), follower.communicate()))
        wait_until(lambda: self.waiting(daemon), "a session that waits")
        return self.waiting(daemon)[0]["id"], follower

    def waiting(self, daemon):
        return [s for s in daemon.ctl("sessions", "--json").events if s["state"] == "waiting"]

    def end(self, daemon, session):
        done = daemon.ctl("watch", "--until-idle", "--json", session)
        self.assertEqual(done.code, 0, done)
        return done.events[1:]

    def test_approve_and_deny(self):
        with Daemon("--config", config(ASK)) as daemon:
            for answer, outcome in ((["approve"], "ok"), (["approve", "--session", "--call", "call_1"], "ok"),
                                    (["deny", "--reason", "count them yourself"], "refused")):
                session, _ = self.begin(daemon)
                self.assertIn("asks for consent (bash command=\"*wc*\"): counts", daemon.ctl("show", session).out)
                wrong = daemon.ctl("approve", session, "--call", "call_7")
                self.assertEqual(wrong.code, 1, wrong)
                self.assertIn("no call call_7 waits for an answer", wrong.err)
                done = daemon.ctl(answer[0], session, *answer[1:])
                self.assertEqual(done.code, 0, done)
                events = self.end(daemon, session)
                finished = next(e for e in events if e["type"] == "tool_finished")
                self.assertEqual(finished["outcome"], outcome)
                if outcome == "refused":
                    self.assertEqual(finished["text"], "Error: bash: this call is not allowed: count them yourself")
                late = daemon.ctl("approve", session)
                self.assertEqual(late.code, 1, late)

    def test_a_question_outlives_sigkill(self):
        with Daemon("--config", config(ASK)) as daemon:
            session, _ = self.begin(daemon)
            before = daemon.tokens(session)
            daemon.kill()
            daemon.start()
            wait_until(lambda: self.waiting(daemon), "the session waits again")
            self.assertEqual(daemon.tokens(session), before)
            self.assertFalse(any(e["type"] == "tool_started" for e in daemon.events(session)))
            self.assertEqual(daemon.ctl("approve", session).code, 0)
            daemon.kill()  # the answer is durable, whatever the call got to
            daemon.start()
            events = self.end(daemon, session)
            self.assertEqual([e["decision"] for e in events if e["type"] == "approval_answered"], ["allow_once"])
            self.assertIn("3", [e for e in events if e["type"] == "turn_finished"][-1]["answer"])

    def test_asks_at_a_terminal(self):
        with Daemon("--config", config(ASK)) as daemon:
            command = daemon.command("run", "--workspace", folder({"a.txt": "x\ny\nz\n"}), TASK)
            pid, terminal = pty.fork()
            if pid == 0:
                os.execv(BIN / "agentctl", command)
            shown, said = b"", 0
            deadline = time.time() + 60
            while time.time() < deadline:
                if not select.select([terminal], [], [], 0.5)[0]:
                    continue
                try:
                    shown += os.read(terminal, 4096)
                except OSError:
                    break
                if shown.count(b"Allow it?") > said:
                    os.write(terminal, [b"perhaps\n", b"y\n"][min(said, 1)])
                    said += 1
            self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 0, shown)
            self.assertEqual(said, 2, shown)  # what is no plain answer is asked again
            self.assertIn("allowed once", shown.decode())

    def test_mistakes_stop_the_start(self):
        for text, says in (("[limits]\nturn_cals = 1\n", "line 2: [limits] unknown key turn_cals"),
                           ("[tools.bahs]\n", "line 1: [tools.bahs] there is no tool bahs"),
                           ("[[mcp]]\nname = \"a\"\n", "line 1: [mcp] give either command or url")):
            done = subprocess.run([BIN / "agentd", "--model", MODEL, "--data", folder({}), "--config", config(text)],
                                  stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
            self.assertEqual(done.returncode, 3, done)
            self.assertIn(says, done.stderr.decode())


if __name__ == "__main__":
    unittest.main(verbosity=2)
