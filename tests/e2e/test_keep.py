"""What outlasts a daemon, a machine or a model: backups and restores, bundles, adopted models."""
import json
import pathlib
import shutil
import subprocess
import tempfile
import unittest

from harness import BIN, MODEL, Daemon, first_gap, folder

FILES = {"shop.cfg": "width = 12\nheight = 30\n", "sub/note.txt": "one\n"}
TASK = "Read shop.cfg and multiply width by height and write the result to area.txt."
MORE = "What is 17 + 25?"
LONG_TASK = ("Create story.txt with these lines:\nthe quick brown fox jumps over the lazy dog\none two three four five six\n"
             "all the birds of the wood sing at dawn\nand none of them knows why")


def restore(backups, data, *arguments):
    return subprocess.run([str(BIN / "agentd"), "restore", "--backup", str(backups), "--data", str(data), *arguments], capture_output=True, text=True, timeout=120)


class Keep(unittest.TestCase):
    def setUp(self):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="agentd-e2e-keep."))
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)

    def run_task(self, daemon, *arguments):
        done = daemon.ctl("run", "--json", *arguments)
        self.assertEqual(done.code, 0, done)
        return done

    def goes_on_alike(self, one, other, session, copy):
        """The next turn in both, token for token; returns what the copy said of its state."""
        self.assertEqual(other.tokens(copy), one.tokens(session))
        self.run_task(one, "--session", session, MORE)
        resumed = self.run_task(other, "--session", copy, MORE).of_type("resumed")
        self.assertEqual(other.tokens(copy), one.tokens(session))
        self.assertEqual(other.workspace(copy), one.workspace(session))
        self.assertIsNone(first_gap(other.events(copy)))
        self.assertEqual(resumed[0]["prefilled_again"], 0)
        return resumed[0]

    def test_backup_of_a_busy_daemon(self):
        backups = self.directory / "backups"
        with Daemon() as daemon:
            session = self.run_task(daemon, "--workspace", folder(FILES), TASK).events[0]["id"]
            first = daemon.ctl("backup", backups, "--json")
            self.assertEqual(first.code, 0, first)
            running = daemon.begin("run", "--json", LONG_TASK)
            busy = json.loads(running.stdout.readline())["id"]
            while not (lambda e: e["type"] == "tokens" and e["sampled"])(json.loads(running.stdout.readline())):
                pass
            made = daemon.ctl("backup", backups, "--json")
            self.assertEqual(made.code, 0, made)
            self.assertGreater(made.events[0]["shared_bytes"], 0)
            running.communicate(timeout=100)
            listed = daemon.ctl("backup", backups, "--list", "--json")
            self.assertEqual([b["id"] for b in listed.events], [1, 2], listed)
            self.assertIn("BACKUP", daemon.ctl("backup", backups, "--list").out)
            self.assertIn("backup 2 is whole", daemon.ctl("backup", backups, "--verify").out)

            copy = Daemon()
            done = restore(backups, copy.data)
            self.assertEqual(done.returncode, 0, done)
            again = restore(backups, copy.data)
            self.assertNotEqual(again.returncode, 0)
            self.assertIn("nothing over", again.stderr)
            with copy:  # beside the original
                copy.ctl("watch", busy, "--until-idle", "--json")
                self.assertEqual(copy.tokens(busy), daemon.tokens(busy))
                self.assertGreater(self.goes_on_alike(daemon, copy, session, session)["restored"], 0)

            victim = max((p for p in (backups / "shared_checksum").iterdir()), key=lambda p: p.stat().st_size)
            bytes_ = bytearray(victim.read_bytes())
            bytes_[len(bytes_) // 2] ^= 1
            victim.write_bytes(bytes_)
            bad = daemon.ctl("backup", backups, "--verify")
            self.assertEqual(bad.code, 1, bad)
            self.assertIn(victim.name, bad.err)
            refused = restore(backups, self.directory / "new")
            self.assertEqual(refused.returncode, 5, refused)
            self.assertIn(victim.name, refused.stderr)
            self.assertFalse((self.directory / "new").exists())
            self.assertEqual(daemon.ctl("backup", backups, "--verify", "--keep", "1").code, 2)

    def test_bundle_through_a_pipe(self):
        with Daemon() as one, Daemon() as other:
            session = self.run_task(one, "--seed", "7", "Hello").events[0]["id"]
            sent = subprocess.run(one.command("export", session, "-"), stdin=subprocess.DEVNULL, capture_output=True, timeout=120, check=True)
            self.assertEqual(sent.stderr, b"")
            for bundle, code in ((sent.stdout[:-1], 1), (b"", 1), (sent.stdout, 0)):
                taken = other.ctl("import", "--json", "-", text=bundle)
                self.assertEqual(taken.code, code, taken)
            self.goes_on_alike(one, other, session, taken.events[-1]["id"])
            self.assertEqual(len(other.ctl("sessions", "--json").events), 1)

    def test_bundle_to_another_daemon(self):
        file = self.directory / "session.bundle"
        with Daemon() as one, Daemon() as other:
            session = self.run_task(one, "--workspace", folder(FILES), "--temperature", "0.7", TASK).events[0]["id"]
            exported = one.ctl("export", session, file)
            self.assertEqual(exported.code, 0, exported)
            self.assertEqual(file.stat().st_mode & 0o777, 0o600)
            again = one.ctl("export", session, file)
            self.assertEqual(again.code, 2, again)
            imported = other.ctl("import", file, "--json")
            self.assertEqual(imported.code, 0, imported)
            copy = imported.events[0]
            self.assertEqual(copy["imported_from"], session)
            self.assertEqual(copy["config"]["title"], one.session(session)["config"]["title"])
            self.assertEqual(other.workspace(copy["id"]), one.workspace(session))
            plain = other.ctl("import", file, "--no-kv")
            self.assertEqual(plain.code, 0, plain)
            self.assertIn(session, plain.err)
            self.assertEqual(self.goes_on_alike(one, other, session, copy["id"])["restored"], copy["kv_position"])

            whole = file.read_bytes()
            count = len(other.ctl("sessions", "--json").events)
            for damaged in (whole[: len(whole) // 2], whole[:-1], whole[:5000] + b"x" + whole[5001:], b"not a bundle, but long enough"):
                file.write_bytes(damaged)
                bad = other.ctl("import", file)
                self.assertEqual(bad.code, 1, bad)
                self.assertTrue("at byte" in bad.err or "no bundle" in bad.err, bad)
            self.assertEqual(len(other.ctl("sessions", "--json").events), count)
            self.assertEqual(other.ctl("import", self.directory / "nowhere").code, 2)
            self.assertEqual(one.ctl("export", "0" * 26, self.directory / "x").code, 1)
            self.assertEqual(list(self.directory.glob("*.part")), [])

    def test_import_that_is_killed(self):
        file = self.directory / "session.bundle"
        with Daemon() as one:
            session = self.run_task(one, "--workspace", folder(FILES), TASK).events[0]["id"]
            self.assertEqual(one.ctl("export", session, file).code, 0)
            for point in ("agentd.bundle_taken", "agentd.bundle_imported"):
                with Daemon(environment={"AGENTD_CRASH_POINT": point}) as other:
                    killed = other.ctl("import", file)
                    self.assertEqual(killed.code, 5, killed)
                    other.process.wait(60)
                    other.environment = {}
                    other.start()
                    listed = other.ctl("sessions", "--json").events
                    self.assertEqual(len(listed), int(point == "agentd.bundle_imported"), point)
                    self.assertEqual(other.ctl("import", file).code, 0)

    def test_another_model(self):
        model = self.directory / "other-model"
        shutil.copytree(MODEL, model)
        config = json.loads((model / "config.json").read_text())
        config["rms_norm_eps"] *= 1.0001  # another model by its fingerprint, as good as this one by what it says
        (model / "config.json").write_text(json.dumps(config))
        with Daemon() as daemon:
            session = self.run_task(daemon, "--workspace", folder(FILES), TASK).events[0]["id"]
            before = daemon.tokens(session)
            self.assertEqual(daemon.stop(), 0)
            daemon.model = model
            daemon.start()
            refused = daemon.ctl("run", "--session", session, MORE)
            self.assertEqual(refused.code, 1, refused)
            for part in (MODEL.name, "other-model", f"agentctl run --session {session} --adopt"):
                self.assertIn(part, refused.err)
            done = self.run_task(daemon, "--session", session, "--adopt", MORE)
            self.assertEqual(done.of_type("resumed")[0]["restored"], 0)
            self.assertIn("42", done.of_type("turn_finished")[0]["answer"])
            self.assertEqual(daemon.tokens(session)[: len(before)], before)
            adopted = [e for e in daemon.events(session) if e["type"] == "model_adopted"]
            self.assertEqual([e["to_model"] for e in adopted], ["other-model"])
            self.assertIn("another model goes on: other-model", daemon.ctl("show", session).out)
            self.run_task(daemon, "--session", session, MORE)  # no more consent is needed
            self.assertEqual(daemon.ctl("run", "--adopt", "Hello").code, 2)


if __name__ == "__main__":
    unittest.main()
