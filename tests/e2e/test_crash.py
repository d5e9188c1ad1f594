"""SIGKILL of the daemon at random moments of a turn: what comes out is what comes out without it, token for token."""
import json
import os
import random
import signal
import threading
import time
import unittest

from harness import Daemon, first_gap, folder

ROUNDS = int(os.environ.get("AGENTD_CRASH_ROUNDS", "8"))
# What a decoding turn may have to evaluate again: the tail anchor's distance.
MAX_REPLAYED = 1024

FILES = {"shop.cfg": "width = 12\nheight = 30\ndepth = 7\n", "words.txt": "amber\nbirch\ncedar\namber\ndogwood\n", "numbers.txt": "17\n25\n3\n"}
TASKS = [
    "Read shop.cfg and multiply width by height and write the result to area.txt.",
    "Sum the numbers in numbers.txt and save the total in total.txt.",
    "Count the lines with amber in words.txt and write the number to count.txt.",
    "Append fig to words.txt.",
    "Set depth to 99 in shop.cfg.",
    "Create story.txt with these lines:\nthe quick brown fox jumps\nover the lazy dog\none two three four five",
    "Read shop.txt and tell me the value of width.",
]


class Crash(unittest.TestCase):
    def setUp(self):
        self.seed = int(os.environ.get("AGENTD_CRASH_SEED", random.SystemRandom().randrange(2**32)))
        print(f"AGENTD_CRASH_SEED={self.seed}", flush=True)
        self.random = random.Random(self.seed)

    def conversation(self):
        """A few tasks for one session, and how it is sampled."""
        settings = ["--seed", self.random.randrange(2**63)]
        if self.random.random() < 0.3:  # not the likeliest tokens only: the sampler's state must come back too
            settings += ["--temperature", "0.7"]
        return self.random.sample(TASKS, self.random.randint(1, 3)), settings

    def uninterrupted(self, daemon, tasks, settings):
        """Tokens and files of the session that nobody killed, and how long its turns took."""
        session, seconds = None, []
        for task in tasks:
            where = ["--session", session] if session else ["--workspace", folder(FILES), "--max-tokens", "400", *settings]
            started = time.monotonic()
            done = daemon.ctl("run", "--json", *where, task)
            seconds.append(time.monotonic() - started)
            self.assertIn(done.code, (0, 1, 3), done)
            session = done.events[0]["id"]
        return daemon.tokens(session), daemon.workspace(session), seconds

    def killed(self, daemon, tasks, settings, seconds):
        """The same with a SIGKILL somewhere in each turn. Returns tokens, files, and the resumes' events."""
        session = None
        for task, normal in zip(tasks, seconds):
            where = ["--session", session] if session else ["--workspace", folder(FILES), "--max-tokens", "400", *settings]
            before = daemon.session(session)["last_seq"] if session else 0
            session = self.start_and_kill(daemon, [*where, task], normal) or session
            self.settle(daemon, session, before, where, task)
        events = daemon.events(session)
        self.assertIsNone(first_gap(events))
        return daemon.tokens(session), daemon.workspace(session), [e for e in events if e["type"] == "resumed"]

    def start_and_kill(self, daemon, arguments, normal):
        """Starts a turn, kills the daemon within about the turn's time, starts it again. The session's id, if it was told."""
        running = daemon.begin("run", "--json", *arguments)
        first = running.stdout.readline()
        drained = threading.Thread(target=running.stdout.read)
        drained.start()
        time.sleep(self.random.uniform(0, 1.1 * normal))
        daemon.kill()
        drained.join()
        running.communicate()
        daemon.start()
        # A session whose creation was not acknowledged is none.
        event = json.loads(first) if first else {}
        return event["id"] if event.get("type") == "session" else None

    def settle(self, daemon, session, before, where, task):
        """Waits for the turn; asks again if it had not become durable before the kill."""
        self.assertIsNotNone(session)
        daemon.ctl("watch", session, "--until-idle", "--json")
        new = [e for e in daemon.events(session) if e["seq"] > before]
        asked = [e for e in new if e["type"] == "user_message"]
        self.assertLessEqual(len(asked), 1)
        if not asked:
            done = daemon.ctl("run", "--json", "--session", session, task)
            self.assertIn(done.code, (0, 1, 3), done)
            new = [e for e in daemon.events(session) if e["seq"] > before]
        self.assertEqual(sum(e["type"] == "turn_finished" for e in new), 1)
        self.assertEqual(daemon.session(session)["state"], "idle")

    def test_random_kills(self):
        resumes = 0
        with Daemon() as daemon:
            for number in range(ROUNDS):
                tasks, settings = self.conversation()
                with self.subTest(round=number, tasks=tasks, settings=settings):
                    tokens, files, seconds = self.uninterrupted(daemon, tasks, settings)
                    killed_tokens, killed_files, resumed = self.killed(daemon, tasks, settings, seconds)
                    self.assertEqual(killed_tokens, tokens)
                    self.assertEqual(killed_files, files)
                    for event in resumed:
                        self.assertEqual(event["prefilled_again"], 0)
                        self.assertLessEqual(event["replayed"], MAX_REPLAYED)
                    resumes += sum(e["after_crash"] for e in resumed)
            self.assertEqual(daemon.stop(), 0)
        print(f"{ROUNDS} sessions killed, {resumes} resumes in mid-turn", flush=True)
        self.assertGreater(resumes, 0)  # else the kills proved nothing

    def test_kill_in_a_tool(self):
        """A call under way is run again from the files before it: its effect is there once."""
        with Daemon() as daemon:
            task = "Run `echo once >> log.txt; sleep 2; echo twice >> log.txt`"
            whole = daemon.ctl("run", "--json", "--seed", "3", task)
            self.assertEqual(whole.code, 0, whole)
            expected = daemon.workspace(whole.events[0]["id"])
            self.assertEqual(expected["log.txt"].count(b"\n"), 2)
            running = daemon.begin("run", "--json", "--seed", "3", task)
            session = json.loads(running.stdout.readline())["id"]
            for line in running.stdout:
                if json.loads(line)["type"] == "tool_started":
                    break
            time.sleep(0.7)
            daemon.kill()
            running.communicate()
            daemon.start()
            daemon.ctl("watch", session, "--until-idle")
            events = daemon.events(session)
            starts = [e for e in events if e["type"] == "tool_started"]
            self.assertGreaterEqual(starts[-1]["attempt"], 2, starts)
            self.assertEqual(len([e for e in events if e["type"] == "tool_finished"]), len({e["call_id"] for e in starts}))
            self.assertEqual(daemon.workspace(session), expected)
            self.assertEqual(daemon.tokens(session), daemon.tokens(whole.events[0]["id"]))

    def test_stop_and_start_in_mid_turn(self):
        """SIGTERM and SIGHUP park the turn; the next daemon goes on with it."""
        with Daemon() as daemon:
            tasks, settings = [TASKS[0], TASKS[5]], ["--seed", "9"]
            tokens, files, _ = self.uninterrupted(daemon, tasks, settings)
            session = None
            for task, number in zip(tasks, (signal.SIGTERM, signal.SIGHUP)):
                where = ["--session", session] if session else ["--workspace", folder(FILES), "--max-tokens", "400", *settings]
                running = daemon.begin("run", "--json", *where, task)
                session = json.loads(running.stdout.readline())["id"]
                for line in running.stdout:
                    event = json.loads(line)
                    if event["type"] == "tokens" and event["sampled"]:
                        break
                self.assertEqual(daemon.stop(number), 0)
                running.communicate()
                daemon.start()
                daemon.ctl("watch", session, "--until-idle")
            self.assertEqual(daemon.tokens(session), tokens)
            self.assertEqual(daemon.workspace(session), files)

    def test_watchers_learn_that_the_daemon_stops(self):
        """The turn did not end, whatever they were told to wait for."""
        with Daemon() as daemon:
            running = daemon.begin("run", "--json", "Run `sleep 100`")
            session = json.loads(running.stdout.readline())["id"]
            for line in running.stdout:
                if json.loads(line)["type"] == "tool_started":
                    break
            watching = [daemon.begin("watch", session, *more) for more in ([], ["--until-idle"])]
            for watcher in watching:
                watcher.stderr.readline()  # the session's line: it is there
            self.assertEqual(daemon.stop(), 0)
            for client in (running, *watching):
                _, err = client.communicate(timeout=60)
                self.assertEqual(client.returncode, 5, err)

    def test_resume_by_hand(self):
        with Daemon("--resume", "manual") as daemon:
            running = daemon.begin("run", "--json", "--workspace", folder(FILES), "--seed", "4", TASKS[5])
            session = json.loads(running.stdout.readline())["id"]
            for line in running.stdout:
                event = json.loads(line)
                if event["type"] == "tokens" and event["sampled"]:
                    break
            daemon.kill()
            running.communicate()
            daemon.start()
            self.assertEqual(daemon.session(session)["state"], "interrupted")
            watched = daemon.ctl("watch", session, "--until-idle")
            self.assertEqual(watched.code, 1, watched)
            self.assertIn(f"interrupted before its end; go on with it: agentctl run --session {session}", watched.err)
            self.assertEqual(daemon.ctl("run", "hello", "--session", session).code, 1)  # the old turn first
            done = daemon.ctl("run", "--json", "--session", session)
            self.assertEqual(done.code, 0, done)
            self.assertEqual(done.of_type("resumed")[-1]["prefilled_again"], 0)

    def test_kills_during_recovery(self):
        """Killed again and again before the resumed turn has ended."""
        with Daemon() as daemon:
            tasks, settings = [TASKS[0]], ["--seed", "21"]
            tokens, files, seconds = self.uninterrupted(daemon, tasks, settings)
            session = self.start_and_kill(daemon, ["--workspace", folder(FILES), "--max-tokens", "400", *settings, tasks[0]], seconds[0] * 0.8)
            for _ in range(5):
                time.sleep(self.random.uniform(0, 0.15))
                daemon.kill()
                daemon.start()
            self.settle(daemon, session, 0, [], tasks[0])
            self.assertEqual(daemon.tokens(session), tokens)
            self.assertEqual(daemon.workspace(session), files)
            self.assertTrue(all(e["prefilled_again"] == 0 for e in daemon.events(session) if e["type"] == "resumed"))

    def test_killed_starts_leave_nothing(self):
        with Daemon() as daemon:
            temporary = daemon.directory / "tmp"
            temporary.mkdir()
            daemon.environment["TMPDIR"] = str(temporary)
            names = sorted(path.name for path in daemon.data.iterdir())
            daemon.stop()
            cut_off = 0
            for _ in range(2 * ROUNDS + 8):
                daemon.launch()
                time.sleep(self.random.uniform(0, 0.6))
                daemon.kill()
                cut_off += (daemon.data / "probe").exists()
            daemon.start()
            self.assertEqual(sorted(path.name for path in daemon.data.iterdir()), names, f"{cut_off} starts left a probe")
            self.assertEqual(list(temporary.iterdir()), [])


if __name__ == "__main__":
    unittest.main(verbosity=2)
