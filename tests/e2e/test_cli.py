"""agentctl against a real daemon: what it prints, what it refuses, its exit codes, its JSON."""
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import tempfile
import termios
import time
import unittest

from harness import BIN, MODEL, ROOT, Daemon, WithDaemon, first_gap, folder, tree, wait_until

# Long enough to meet while it runs.
LONG_TASK = ("Create story.txt with these lines:\nthe quick brown fox jumps over the lazy dog\none two three four five six\n"
             "all the birds of the wood sing at dawn\nand none of them knows why")


class Cli(WithDaemon):
    def run_json(self, *arguments):
        done = self.ctl("run", "--json", *arguments)
        self.assertEqual(done.code, 0, done)
        return done

    # ---- run

    def test_answer_on_stdout_tools_on_stderr(self):
        done = self.ctl("run", "--workspace", folder({"a.txt": "x\ny\nz\n"}), "How many lines are in a.txt?")
        self.assertEqual(done.code, 0, done)
        self.assertIn("3", done.out)
        self.assertTrue(done.out.endswith("\n"), done)
        self.assertNotIn("▸", done.out)
        self.assertIn("▸ bash: wc -l < a.txt", done.err)
        self.assertIn("◂ 3", done.err)
        self.assertNotIn("\033", done.out + done.err)  # no terminal: no colour

    def test_help_names_every_field_of_every_event(self):
        proto = (ROOT / "proto/agentd/v1/agentd.proto").read_text()
        body = lambda name: re.search(rf"^message {name} \{{(.*?)^\}}|^message {name} \{{(.*?)\}}$", proto, re.S | re.M).group(0)
        help = self.ctl("run", "--help").out
        kinds = re.findall(r"^ +(\w+) (\w+) = \d+;", body("Event").split("oneof kind")[1], re.M)
        self.assertGreater(len(kinds), 15)
        for message, kind in [*kinds, ("NetworkUse", "network")]:
            for word in [kind, *re.findall(r"(\w+) = \d+[ ;]", body(message))]:
                self.assertRegex(help, rf"\b{word}\b", message)

    def test_quiet(self):
        done = self.ctl("run", "-q", "What is 17 + 25?")
        self.assertEqual((done.code, done.err), (0, ""), done)
        self.assertIn("42", done.out)

    def test_json_is_the_session_then_its_events(self):
        done = self.run_json("--title", "a title", "--seed", "5", "What is 17 + 25?")
        session, events = done.events[0], done.events[1:]
        self.assertEqual(session["type"], "session")
        self.assertEqual(session["config"]["title"], "a title")
        self.assertEqual(session["seed"], 5)
        self.assertTrue(os.path.isdir(session["workspace"]))
        kinds = [e["type"] for e in events]
        for kind in ("user_message", "turn_started", "tokens", "tool_started", "tool_finished", "turn_finished"):
            self.assertIn(kind, kinds)
        self.assertEqual(kinds[-1], "turn_finished")
        last = events[-1]
        self.assertEqual(last["end"], "answer")
        self.assertIn("42", last["answer"])
        self.assertEqual(last["tool_calls"], 1)
        self.assertTrue(all(e["session_id"] == session["id"] for e in events))
        stored = [e for e in events if e["seq"]]
        self.assertEqual([e["seq"] for e in stored], sorted({e["seq"] for e in stored}))
        call = done.of_type("tool_started")[0]
        self.assertIn("command", json.loads(call["arguments_json"]))
        self.assertEqual(done.of_type("tool_finished")[0]["outcome"], "ok")
        # A call's start is durable before its result, and the result before anything sampled after it.
        self.assertLess(call["seq"], done.of_type("tool_finished")[0]["seq"])
        # What was streamed is what is stored.
        self.assertEqual(stored[-1], self.daemon.events(session["id"])[-1])
        self.assertIsNone(first_gap(self.daemon.events(session["id"])))

    def test_streamed_text_is_the_answer(self):
        done = self.run_json("Hello")
        said = "".join(e["content"] for e in done.of_type("tokens") if e["sampled"])
        self.assertEqual(said.strip(), done.of_type("turn_finished")[0]["answer"].strip())

    def test_text_from_stdin_and_file(self):
        self.assertIn("42", self.ctl("run", "-q", "-", text="What is 17 + 25?").out)
        path = folder({"task.txt": "What is 17 + 25?"}) / "task.txt"
        self.assertIn("42", self.ctl("run", "-q", "--file", path).out)

    def test_session_goes_on(self):
        first = self.run_json("Remember: the code for amber is K7Q2.")
        session = first.events[0]["id"]
        second = self.ctl("run", "-q", "--session", session, "What is the code for amber?")
        self.assertIn("K7Q2", second.out, second)

    def test_unique_prefix_and_last(self):
        session = self.run_json("Hello").events[0]["id"]
        self.assertEqual(self.ctl("show", "last", "--json").events[0]["id"], session)
        ids = [s["id"] for s in self.ctl("sessions", "--json").events]
        length = next(n for n in range(1, 27) if sum(i.startswith(session[:n]) for i in ids) == 1)
        self.assertEqual(self.ctl("show", session[:length], "--json").events[0]["id"], session)
        if len(ids) > 1:
            vague = self.ctl("show", session[:1])
            self.assertEqual(vague.code, 1)
            self.assertIn("give more of the id", vague.err)

    def test_workspace_is_a_copy(self):
        source = folder({"a.txt": "one\n", "sub/b.txt": "two\n"})
        os.symlink("a.txt", source / "link")
        (source / "empty").mkdir()
        before = tree(source)
        done = self.run_json("--workspace", source, "Create new.txt with the text hello")
        workspace = done.events[0]["workspace"]
        self.assertEqual(tree(source), before)
        after = self.daemon.workspace(done.events[0]["id"])
        self.assertEqual(after.pop("new.txt").strip(), b"hello")
        self.assertEqual(after, before)
        self.assertNotEqual(os.path.realpath(workspace), os.path.realpath(source))

    def test_relative_workspace(self):
        source = folder({"a.txt": "one\n"})
        done = subprocess.run(self.daemon.command("run", "--json", "--workspace", ".", "Hello"), cwd=source, capture_output=True, timeout=100)
        session = json.loads(done.stdout.splitlines()[0])
        self.assertEqual(self.daemon.workspace(session["id"]), {"a.txt": b"one\n"})

    def test_no_tools(self):
        done = self.run_json("--no-tools", "Hello")
        self.assertEqual(done.of_type("tool_started"), [])

    # ---- limits, cancelling, other ends

    def test_token_limit_is_exit_code_3(self):
        done = self.ctl("run", "--json", "--max-tokens", "5", LONG_TASK)
        self.assertEqual(done.code, 3, done)
        self.assertEqual(done.of_type("turn_finished")[0]["end"], "token_limit")
        self.assertLessEqual(done.of_type("turn_finished")[0]["sampled_tokens"], 5)
        text = self.ctl("run", "--max-tokens", "5", LONG_TASK)
        self.assertIn("token limit", text.err)

    def test_call_limit_is_exit_code_3(self):
        files = folder({"p.cfg": "width = 12\nheight = 30\n"})
        done = self.ctl("run", "--json", "--max-calls", "1", "--workspace", files, "Read p.cfg and multiply width by height and write the result to area.txt.")
        self.assertEqual(done.code, 3, done)
        self.assertEqual(done.of_type("turn_finished")[0]["end"], "call_limit")

    def test_a_running_turn_is_pointed_to(self):
        running = self.daemon.begin("run", "--json", LONG_TASK)
        session = json.loads(running.stdout.readline())["id"]
        wait_for_event(running, "tokens", sampled=True)
        busy = self.ctl("run", "--session", session, "Hello")
        running.communicate(timeout=100)
        self.assertEqual(busy.code, 1, busy)
        self.assertIn(f"agentctl watch {session} --until-idle", busy.err)

    def test_interrupt_cancels(self):
        running = self.daemon.begin("run", "--json", LONG_TASK)
        session = json.loads(running.stdout.readline())["id"]
        wait_for_event(running, "tokens", sampled=True)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=100)
        self.assertEqual(running.returncode, 4, (out, err))
        self.assertIn(b"cancelling", err)
        self.assertEqual(json.loads(out.splitlines()[-1])["end"], "cancelled")
        self.assertEqual(self.daemon.session(session)["state"], "idle")
        again = self.ctl("run", "-q", "--session", session, "Hello")  # and it can go on
        self.assertEqual(again.code, 0, again)

    def test_interrupt_before_the_turn_begins(self):
        """While the daemon reads or cuts a long prompt: "cancelled" is said only of what does not run, and nothing stays."""
        path = folder({"long.txt": "Read this text: " + "the birds of the wood sing at dawn and none of them knows why. " * 500}) / "long.txt"
        for delay in (0, 0.02, 0.05, 0.1, 0.2):
            running = self.daemon.begin("run", "--json", "--file", path)
            session = json.loads(running.stdout.readline())["id"]
            time.sleep(delay)
            running.send_signal(signal.SIGINT)
            out, err = running.communicate(timeout=100)
            self.assertEqual(running.returncode, 4, (delay, out, err))
            found = [s for s in self.ctl("sessions", "--json").events if s["id"] == session]
            if found:  # it had begun: then it has ended as cancelled
                self.assertEqual(json.loads(out.splitlines()[-1])["end"], "cancelled", (delay, err))
                self.assertEqual(found[0]["state"], "idle", delay)
            else:
                self.assertIn(b"before it began", err)

    def test_second_interrupt_leaves(self):
        """Also when the daemon does not answer: it is stopped here. The turn goes on once it can."""
        running = self.daemon.begin("run", "--json", LONG_TASK)
        session = json.loads(running.stdout.readline())["id"]
        wait_for_event(running, "tokens", sampled=True)
        self.daemon.process.send_signal(signal.SIGSTOP)
        try:
            running.send_signal(signal.SIGINT)
            self.assertIn(b"cancelling", running.stderr.readline() + running.stderr.readline())
            running.send_signal(signal.SIGINT)
            out, err = running.communicate(timeout=20)
        finally:
            self.daemon.process.send_signal(signal.SIGCONT)
        self.assertEqual(running.returncode, 4, (out, err))
        self.assertIn(b"agentctl watch", err)
        self.ctl("watch", session, "--until-idle")
        self.assertEqual(self.daemon.events(session)[-1]["type"], "turn_finished")

    def test_long_prompt_shows_progress_on_a_terminal(self):
        path = folder({"long.txt": "Read this text: " + "the birds of the wood sing at dawn and none of them knows why. " * 60})
        shown = on_terminal(self.daemon.command("run", "--file", path / "long.txt"), {})
        self.assertIn(b"prefill [", shown)

    def test_cancel_command(self):
        running = self.daemon.begin("run", "--json", LONG_TASK)
        session = json.loads(running.stdout.readline())["id"]
        wait_for_event(running, "tokens", sampled=True)
        cancelled = self.ctl("cancel", session)
        out, _ = running.communicate(timeout=100)
        if cancelled.code == 0:
            self.assertEqual(running.returncode, 4, out)
        idle = self.ctl("cancel", session)
        self.assertEqual(idle.code, 1, idle)

    def test_a_tool_that_is_cancelled_leaves_no_process(self):
        marker = f"41{os.getpid()}"
        running = self.daemon.begin("run", "--json", f"Run `sleep {marker}`")
        wait_for_event(running, "tool_started")
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=100)
        self.assertEqual(running.returncode, 4, (out, err))
        wait_until(lambda: not processes_with(f"sleep {marker}"), "the tool's process ends", 10)

    def test_killed_client_does_not_end_the_turn(self):
        running = self.daemon.begin("run", "--json", LONG_TASK)
        session = json.loads(running.stdout.readline())["id"]
        wait_for_event(running, "tokens", sampled=True)
        running.kill()
        running.communicate()
        watched = self.ctl("watch", session, "--until-idle", "--json")
        self.assertEqual(watched.code, 0, watched)
        self.assertEqual(watched.of_type("turn_finished")[-1]["end"], "answer")

    # ---- looking

    def test_show(self):
        session = self.run_json("What is 17 + 25?").events[0]["id"]
        shown = self.ctl("show", session)
        self.assertEqual(shown.code, 0)
        self.assertIn("> What is 17 + 25?", shown.out)
        self.assertIn("▸ bash:", shown.out)
        ended = self.daemon.events(session)[-1]["seq"]
        self.assertIn(f"[{ended}] answer · ", shown.out)  # the number that fork and rewind take
        tokens = self.ctl("show", session, "--tokens").out.splitlines()
        self.assertEqual(len(tokens), self.daemon.session(session)["tokens"])
        self.assertTrue(any(t.startswith("sampled ") for t in tokens))

    def test_watch_from(self):
        session = self.run_json("Hello").events[0]["id"]
        all_events = self.daemon.events(session)
        part = self.ctl("watch", session, "--from", "4", "--until-idle", "--json").events[1:]
        self.assertEqual([e["seq"] for e in part], [e["seq"] for e in all_events][3:])

    def test_watch_follows(self):
        session = self.run_json("Hello").events[0]["id"]
        watching = self.daemon.begin("watch", session, "--json")
        self.ctl("run", "--session", session, "Hello again")
        seen = []
        while sum(e["type"] == "turn_finished" for e in seen) < 2:
            seen.append(json.loads(watching.stdout.readline()))
        watching.send_signal(signal.SIGINT)
        watching.communicate(timeout=30)
        self.assertEqual(watching.returncode, 0)
        self.assertIsNone(first_gap([e for e in seen[1:] if e["seq"]]))

    def test_sessions(self):
        session = self.run_json("--title", "tabled", "Hello").events[0]["id"]
        table = self.ctl("sessions").out.splitlines()
        self.assertTrue(table[0].startswith("ID "))
        self.assertTrue(any(row.startswith(session) and row.endswith("tabled") and " idle " in row for row in table))
        self.assertEqual(len(self.ctl("sessions", "--json", "--limit", "1").events), 1)

    def test_info(self):
        info = json.loads(self.ctl("info", "--json").out)
        self.assertEqual({t["name"] for t in info["tools"]}, {"bash", "read_file", "write_file", "edit_file", "list_dir", "grep"})
        self.assertTrue(all(w["available"] for w in info["walls"] if w["required"]), info["walls"])
        self.assertGreater(info["pid"], 0)
        self.assertEqual(len(info["model_fingerprint"]), 64)
        text = self.ctl("info").out
        self.assertIn("walls around tools", text)

    # ---- time travel

    def test_fork_and_rewind_take_the_files_along(self):
        session = self.run_json("Create note.txt with the text first").events[0]["id"]
        then = self.daemon.session(session)["last_seq"]
        files_then = self.daemon.workspace(session)
        self.assertEqual(self.ctl("run", "--session", session, "Replace first with second in note.txt").code, 0)
        files_now = self.daemon.workspace(session)
        self.assertNotEqual(files_then, files_now)
        tokens_now = self.daemon.tokens(session)

        forked = self.ctl("fork", session, "--at", then)
        self.assertEqual(forked.code, 0, forked)
        fork = forked.out.strip()
        self.assertEqual(self.daemon.session(fork)["forked_from"], session)
        self.assertEqual(self.ctl("run", "-q", "--session", fork, "What is in note.txt?").code, 0)
        self.assertEqual(self.daemon.workspace(fork), files_then)
        self.assertEqual(self.daemon.workspace(session), files_now)  # the parent is untouched
        self.assertEqual(self.daemon.tokens(session), tokens_now)

        rewound = self.ctl("rewind", session, "--to", then, "--json")
        self.assertEqual(rewound.code, 0, rewound)
        # The rewind itself may be an event of its own.
        self.assertEqual(self.daemon.tokens(session), tokens_now[:len(self.daemon.tokens(session))])
        self.assertEqual(self.ctl("run", "-q", "--session", session, "What is in note.txt?").code, 0)
        self.assertEqual(self.daemon.workspace(session), files_then)
        self.assertIsNone(first_gap(self.daemon.events(session)))

    def test_fork_with_the_same_seed_says_the_same(self):
        session = self.run_json("--temperature", "1", "--seed", "11", "--max-tokens", "60", "Hello").events[0]["id"]
        then = self.daemon.session(session)["last_seq"]
        self.ctl("run", "--session", session, "Tell me more")
        one = self.ctl("fork", session, "--at", then, "--keep-seed").out.strip()
        self.ctl("run", "--session", one, "Tell me more")
        self.assertEqual(self.daemon.tokens(one), self.daemon.tokens(session))

    def test_fork_at_a_token(self):
        session = self.run_json("What is 17 + 25?").events[0]["id"]
        tokens = self.daemon.tokens(session)
        cut = len(tokens) - 3
        fork = self.ctl("fork", session, "--position", cut).out.strip()
        self.assertEqual(self.daemon.tokens(fork), tokens[:cut])
        self.assertEqual(self.daemon.session(fork)["tokens"], cut)

    def test_delete(self):
        session = self.run_json("Hello").events[0]
        self.assertEqual(self.ctl("delete", session["id"]).code, 0)
        self.assertEqual(self.ctl("show", session["id"]).code, 1)
        self.assertFalse(os.path.exists(session["workspace"]))

    # ---- errors

    def test_unknown_session(self):
        for command in (["show"], ["watch"], ["cancel"], ["delete"], ["fork"], ["rewind", "--to", "1"], ["run", "hi", "--session"]):
            for name in ("00000000000000000000000000", "zzzz"):
                done = self.ctl(*command, name)
                self.assertEqual(done.code, 1, (command, done))
                self.assertIn("agentctl sessions", done.err)

    def test_usage_is_exit_code_2(self):
        for wrong in ([], ["nonsense"], ["run"], ["run", ""], ["run", "a", "b"], ["run", "hi", "--session", "x", "--seed", "1"], ["run", "hi", "--session", "x", "--new"],
                      ["run", "hi", "--file", "/dev/null"], ["run", "--file", "/no/such"], ["run", "hi", "--workspace", "/no/such"], ["run", "hi", "--temperature", "warm"],
                      ["run", "hi", "--thinking", "maybe"], ["run", "hi", "--no-tools", "--tool", "bash"], ["rewind", "x"], ["fork", "x", "--at", "1", "--position", "2"],
                      ["show", "x", "--json", "--tokens"], ["--wait", "-1", "info"]):
            self.assertEqual(self.ctl(*wrong).code, 2, wrong)
        self.assertEqual(self.ctl("run", "-", text=b"a\xff").code, 2)
        self.assertEqual(self.ctl("run", "-", text="").code, 2)

    def test_refused_settings_leave_no_session(self):
        before = len(self.ctl("sessions", "--json").events)
        done = self.ctl("run", "--json", "--temperature", "-3", "hi")
        self.assertEqual(done.code, 1, done)
        self.assertIn("temperature", done.err)
        error = done.events[-1]
        self.assertEqual((error["type"], error["code"], error["exit_code"]), ("error", "invalid_argument", 1))
        self.assertEqual(len(self.ctl("sessions", "--json").events), before)

    def test_nothing_to_go_on_with(self):
        session = self.run_json("Hello").events[0]["id"]
        done = self.ctl("run", "--session", session)
        self.assertEqual(done.code, 1, done)
        self.assertEqual(self.daemon.session(session)["state"], "idle")

    def test_out_of_range(self):
        session = self.run_json("Hello").events[0]["id"]
        for command in (["fork", session, "--at", "99999"], ["rewind", session, "--to", "99999"], ["rewind", session, "--position", "99999"]):
            done = self.ctl(*command)
            self.assertEqual(done.code, 1, done)
            self.assertNotEqual(done.err, "")

    def test_prompt_above_the_message_limit(self):
        """Over 4 MiB, so in pieces; over any context, so refused, in words, with the session unharmed."""
        text = ("All work and no play makes a dull day. " * 140_000)[: 5 * 2**20 + 17]
        done = self.ctl("run", "--json", "-", text=text)
        self.assertIn(done.code, (1, 3), done.err)
        self.assertIn("context", done.err + done.out[-2000:])
        self.assertTrue(self.daemon.alive())
        self.assertEqual(self.ctl("run", "-q", "Hello").code, 0)

    def test_usage_errors_name_what_was_typed(self):
        unknown = self.ctl("frobnicate")
        self.assertEqual(unknown.code, 2)
        self.assertIn('no command "frobnicate"', unknown.err)
        none = self.ctl()
        self.assertEqual(none.code, 2)
        self.assertNotIn("no command", none.err)
        limit = self.ctl("sessions", "--limit", "0")
        self.assertEqual(limit.code, 2)
        self.assertIn("not above zero", limit.err)
        for command, said in ((["fork", "a", "b"], "agentctl fork: "), (["sessions", "du", "x"], "agentctl sessions du: "), (["run", "--nope"], "agentctl run: "), ([], "agentctl: ")):
            done = self.ctl(*command)
            self.assertEqual(done.code, 2, done)
            self.assertTrue(done.err.startswith(said) and done.err.endswith(f". See {said[:-2]} --help\n") and done.err.count("\n") == 1, done)
        twice = self.ctl("run", "--tool", "bash", "--tool", "bash", "Hello")
        self.assertEqual((twice.code, twice.err), (1, "agentctl: --tool: bash given twice\n"))
        for text in ("", " \n\t"):
            self.assertIn("the text is empty", self.ctl("run", text).err)
        overlapping = self.ctl("run", "--workspace", self.daemon.data, "Hello")
        self.assertEqual(overlapping.code, 1)
        self.assertIn("--workspace: ", overlapping.err)

    def test_numbers_below_zero_are_refused(self):
        for command in (["rewind", "x", "--to", "-1"], ["fork", "x", "--at", "-1"], ["fork", "x", "--at=-1"], ["fork", "x", "--position", "-1"],
                        ["watch", "x", "--from", "-1"], ["run", "x", "--seed", "-1"], ["fork", "x", "--seed=-1"]):
            done = self.ctl(*command)
            self.assertEqual(done.code, 2, (command, done))
            self.assertIn("below zero", done.err)

    def test_numbers_that_are_none_are_refused(self):
        for command, said in ((["run", "x", "--seed", str(2**64)], f"too large: at most {2**64 - 1}"), (["run", "x", "--max-tokens", str(2**63)], f"at most {2**63 - 1}"),
                              (["run", "x", "--max-calls", str(2**31)], f"at most {2**31 - 1}"), (["watch", "x", "--from", "1x"], '"1x" is no whole number'), (["fork", "x", "--at", ""], "whole number"),
                              (["mcp", "login", "x", "--port", "65536"], "at most 65535")):
            done = self.ctl(*command)
            self.assertEqual(done.code, 2, (command, done))
            self.assertIn(said, done.err)

    def test_a_variable_without_a_value_is_no_session_and_no_folder(self):
        before = len(self.ctl("sessions", "--json").events)
        for option in ("--session", "--workspace", "--in-place", "--file"):
            done = self.ctl("run", option, "", "Hello")
            self.assertEqual(done.code, 2, done)
            self.assertIn(f"{option}: it is empty", done.err)
        self.assertEqual(self.ctl("apply", "last", "--to", "").code, 2)
        self.assertEqual(len(self.ctl("sessions", "--json").events), before)

    def test_output_that_cannot_be_written(self):
        with open("/dev/full", "w") as full:
            for command in (["sessions"], ["info"], ["run", "Hello"], ["run", "--json", "Hello"]):
                done = subprocess.run(self.daemon.command(*command), stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, timeout=100)
                self.assertEqual(done.returncode, 1, command)
                self.assertIn(b"standard output", done.stderr)

    # ---- terminals

    def test_colour_only_on_a_terminal(self):
        coloured = on_terminal(self.daemon.command("run", "What is 17 + 25?"), {})
        self.assertIn(b"\033[2m", coloured)
        plain = on_terminal(self.daemon.command("run", "What is 17 + 25?"), {"NO_COLOR": "1"})
        self.assertNotIn(b"\033[2m", plain)

    def test_narrow_terminal(self):
        path = folder({"long.txt": "Read this other text: " + "all the birds of the wood sing at dawn and none of them knows why. " * 60})
        shown = on_terminal(self.daemon.command("run", "--file", path / "long.txt"), {"NO_COLOR": "1"}, columns=40).decode()
        bars = re.findall(r"prefill [^\r\x1b]*", shown)
        self.assertTrue(bars, shown)
        self.assertLess(max(map(len, bars)), 40, bars)
        shown = on_terminal(self.daemon.command("run", "Run `echo aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa`"), {"NO_COLOR": "1"}, columns=40).decode()
        tools = [line for line in shown.splitlines() if line[:1] in ("▸", "◂")]
        self.assertTrue(tools, shown)
        self.assertLessEqual(max(map(len, tools)), 40, tools)

    def test_chat_reads_a_pipe(self):
        done = self.ctl("chat", text="Remember: the code for amber is K7Q2.\n\nWhat is the code for amber?\n/id\n/quit\nnever said\n")
        self.assertEqual(done.code, 0, done)
        self.assertIn("K7Q2", done.out)
        self.assertNotIn("> ", done.err)  # no prompt without a terminal
        session = self.daemon.ctl("sessions", "--json", "--limit", "1").events[0]["id"]
        said = [e["text"] for e in self.daemon.events(session) if e["type"] == "user_message"]
        self.assertEqual(said, ["Remember: the code for amber is K7Q2.", "What is the code for amber?"])

    def test_chat_without_a_message_leaves_nothing(self):
        before = self.ctl("sessions", "--json").out
        done = self.ctl("chat", text="\n/id\n/undo\n")
        self.assertEqual(done.code, 0, done)
        self.assertEqual(self.ctl("sessions", "--json").out, before)

    def test_untitled_sessions_are_called_by_their_first_line(self):
        session = self.run_json("\nHello there, you\nand more").events[0]["id"]
        row = next(row for row in self.ctl("sessions").out.splitlines() if row.startswith(session))
        self.assertTrue(row.endswith("  Hello there, you"), row)

    def test_chat_commands_and_what_only_looks_like_one(self):
        done = self.ctl("chat", text="/frobnicate\n/help\n/etc/hosts is a file\n//undo\n")
        self.assertEqual(done.code, 0, done)
        self.assertIn("there is no /frobnicate", done.err)
        session = self.daemon.ctl("sessions", "--json", "--limit", "1").events[0]["id"]
        said = [e["text"] for e in self.daemon.events(session) if e["type"] == "user_message"]
        self.assertEqual(said, ["/etc/hosts is a file", "/undo"])

    def test_chat_undo(self):
        done = self.ctl("chat", text="Create a.txt with the text one\nReplace one with two in a.txt\n/undo\n")
        self.assertEqual(done.code, 0, done)
        session = self.daemon.ctl("sessions", "--json", "--limit", "1").events[0]["id"]
        self.assertEqual(self.daemon.workspace(session)["a.txt"].strip(), b"one")


class Starting(unittest.TestCase):
    """What agentd says of a command line that it cannot follow."""

    def refused(self, *arguments):
        done = subprocess.run([BIN / "agentd", *map(str, arguments)], stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
        self.assertNotEqual(done.returncode, 0, arguments)
        return done.stderr.decode()

    def test_version_stands_alone(self):
        done = subprocess.run([BIN / "agentd", "--version"], capture_output=True, timeout=60)
        self.assertEqual(done.returncode, 0, done)
        self.assertRegex(done.stdout.decode(), r"^\d+\.\d+\.\d+\n$")

    def test_errors_name_the_mend(self):
        there = folder({"file": "x"})
        self.assertIn("not in range 0 to 4096", self.refused("--model", MODEL, "--data", there / "d", "--threads", "-1"))
        for flag in ("--expert-cache-gib", "--sequence-gib"):
            self.assertIn(f"{flag}: it must be more than 0", self.refused("--model", MODEL, "--data", there / "d", flag, "nan"))
        missing = self.refused("--model", MODEL, "--data", there / "d", "--socket", there / "none" / "s")
        self.assertIn("--socket needs a directory that exists", missing)
        self.assertIn("--data needs a directory", self.refused("--model", MODEL, "--data", there / "file" / "d", "--socket", there / "s"))
        model = self.refused("--model", there / "file", "--data", there / "d", "--socket", there / "s")
        self.assertIn("is not a directory", model)
        self.assertIn("does not exist", self.refused("--model", there / "none", "--data", there / "d", "--socket", there / "s"))
        for mount, said in ((f'host = "{there}/none"', "/none, to be mounted at"), (f'host = "{there}"\ninside = "/usr/x"', "lie in /usr")):
            (there / "c.toml").write_text("[[mount]]\n" + mount + "\n")
            refused = self.refused("--model", MODEL, "--data", there / "d", "--socket", there / "s", "--config", there / "c.toml")
            self.assertIn("[[mount]]", refused)
            self.assertIn(said, refused)


class Unreachable(unittest.TestCase):
    def test_no_daemon(self):
        daemon = Daemon()
        self.addCleanup(daemon.remove)
        for command in (["info"], ["run", "hi"], ["run", "--json", "hi"], ["chat"], ["sessions"], ["show", "x"], ["watch", "x"], ["fork", "x"], ["delete", "x"]):
            done = daemon.ctl(*command)
            self.assertEqual(done.code, 5, (command, done))
            self.assertIn("agentd --model", done.err)

    def test_wait(self):
        daemon = Daemon()
        self.addCleanup(daemon.remove)
        started = time.monotonic()
        self.assertEqual(daemon.ctl("--wait", "0.3", "info").code, 5)
        self.assertGreaterEqual(time.monotonic() - started, 0.3)

    def test_wait_for_a_daemon_that_does_not_answer(self):
        """One that has the socket but is not there yet (here: stopped) is waited for, then named for what it is."""
        with Daemon() as daemon:
            daemon.process.send_signal(signal.SIGSTOP)
            try:
                waiting = daemon.begin("--wait", "60", "info")
                stuck = daemon.begin("--wait", "1", "sessions")
                time.sleep(25)  # longer than gRPC's own patience
                self.assertIsNone(waiting.poll())
                _, err = stuck.communicate(timeout=60)
                self.assertEqual(stuck.returncode, 5)
                self.assertIn(b"starting or stuck", err)
            finally:
                daemon.process.send_signal(signal.SIGCONT)
            out, err = waiting.communicate(timeout=100)
            self.assertEqual(waiting.returncode, 0, err)
            self.assertIn(b"fingerprint", out)

    def test_daemon_killed_in_mid_turn(self):
        with Daemon() as daemon:
            running = daemon.begin("run", "--json", LONG_TASK)
            session = json.loads(running.stdout.readline())["id"]
            wait_for_event(running, "tokens", sampled=True)
            daemon.kill()
            out, err = running.communicate(timeout=60)
            self.assertEqual(running.returncode, 5, (out, err))
            self.assertIn(b"agentctl watch " + session.encode(), err)
            self.assertEqual(json.loads(out.splitlines()[-1])["exit_code"], 5)

    def test_second_daemon_is_refused(self):
        with Daemon() as daemon:
            again = subprocess.run([BIN / "agentd", "--model", MODEL, "--data", daemon.data, "--socket", str(daemon.socket) + "2"], capture_output=True, timeout=60)
            self.assertNotEqual(again.returncode, 0)
            self.assertIn(str(daemon.process.pid).encode(), again.stderr)
            taken = subprocess.run([BIN / "agentd", "--model", MODEL, "--data", tempfile.mkdtemp(prefix="agentd-e2e.", dir=daemon.directory), "--socket", daemon.socket], capture_output=True, timeout=60)
            self.assertNotEqual(taken.returncode, 0)
            self.assertTrue(daemon.alive())
            self.assertEqual(daemon.ctl("info").code, 0)

    def test_socket_is_private(self):
        with Daemon() as daemon:
            self.assertEqual(os.stat(daemon.socket).st_mode & 0o777, 0o600)


def wait_for_event(running, kind, **fields):
    """Reads the JSON lines of a running agentctl up to the first such event."""
    for line in running.stdout:
        event = json.loads(line)
        if event["type"] == kind and all(event[k] == v for k, v in fields.items()):
            return event
    raise AssertionError(f"no {kind} event: {running.stderr.read().decode()}")


def processes_with(text):
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as f:
                if text in f.read().replace(b"\0", b" ").decode(errors="replace"):
                    found.append(int(pid))
        except OSError:
            pass
    return found


def on_terminal(command, environment, columns=80):
    """The output of a command whose three streams are a terminal."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env={**os.environ, "TERM": "xterm", "NO_COLOR": "", **environment})
    os.close(slave)
    out = b""
    while True:
        try:
            chunk = os.read(master, 4096)
        except OSError:  # EIO: the other end is closed
            break
        if not chunk:
            break
        out += chunk
    os.close(master)
    process.wait(60)
    return out


if __name__ == "__main__":
    unittest.main(verbosity=2)
