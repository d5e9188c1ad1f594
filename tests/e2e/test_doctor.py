"""agentctl doctor on the store of a real agentd: what is damaged is named, and healed or refused as it says."""
import random
import shutil
import subprocess
import unittest

from harness import BIN, MODEL, PATIENCE_S, Daemon, folder

FILES = {"shop.cfg": "width = 12\nheight = 30\ndepth = 7\n"}
FIRST, SECOND = "Read shop.cfg and multiply width by height and write the result to area.txt.", "Set depth to 99 in shop.cfg."


def flip(path, offset):
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


class Doctor(unittest.TestCase):
    def setUp(self):
        self.daemon = Daemon()
        self.addCleanup(self.daemon.remove)
        self.daemon.start()
        self.session = self.turn("--workspace", folder(FILES), "--seed", "5", FIRST)
        self.other = self.turn("--seed", "6", "Hello")
        self.assertEqual(self.daemon.stop(), 0)
        # The copy of another life shows what a healthy store would have said.
        self.copy = self.daemon.directory / "copy"
        shutil.copytree(self.daemon.data, self.copy)

    def turn(self, *arguments):
        done = self.daemon.ctl("run", "--json", *arguments)
        self.assertEqual(done.code, 0, done)
        return done.events[0]["id"]

    def doctor(self, *more):
        done = self.daemon.ctl("doctor", self.daemon.data, "--json", *more)
        self.assertIn(done.code, (0, 6), done)
        self.assertEqual(done.events[-1]["exit_code"], done.code)
        return done

    def put_back(self):
        shutil.rmtree(self.daemon.data)
        shutil.copytree(self.copy, self.daemon.data)

    def files(self, ending):
        return sorted((self.daemon.data / "store" / "db").glob("*" + ending), key=lambda path: -path.stat().st_size)

    def test_a_healthy_store(self):
        done = self.doctor()
        self.assertEqual(done.code, 0, done)
        self.assertEqual(done.events[-1]["sessions"], 2)
        self.assertIn("nothing is damaged", self.daemon.ctl("doctor", self.daemon.data).out)
        self.daemon.start()
        used = self.daemon.ctl("doctor", self.daemon.data)
        self.assertEqual(used.code, 1, used)
        self.assertIn("in use by process", used.err)
        self.assertEqual(self.daemon.ctl("doctor", self.daemon.directory / "nowhere").code, 1)

    def test_damaged_kv_is_named_and_healed_by_the_next_turn(self):
        self.daemon.start()
        self.turn("--session", self.session, SECOND)
        expected = self.daemon.tokens(self.session)
        self.assertEqual(self.daemon.stop(), 0)
        self.put_back()
        found = None
        for blob in self.files(".blob"):
            flip(blob, blob.stat().st_size // 2)
            done = self.doctor()
            findings = [e for e in done.events if e["type"] == "finding"]
            if findings and findings[0]["kind"] == "kv":
                found = findings[0]
                break
            flip(blob, blob.stat().st_size // 2)
        self.assertIsNotNone(found, "no blob file held a block")
        self.assertEqual((found["harm"], done.code), ("time", 6))
        self.assertRegex(found["what"], r"KV part \d+ of block [0-9a-f]+ \(tokens \d+ to \d+ of session ")
        self.daemon.start()
        self.turn("--session", self.session, SECOND)
        self.assertEqual(self.daemon.tokens(self.session), expected)
        self.assertEqual(self.daemon.stop(), 0)
        self.assertEqual(self.doctor().code, 0)

    def test_all_cached_values_damaged(self):
        for blob in self.files(".blob"):
            for offset in range(500, blob.stat().st_size, 2000):
                flip(blob, offset)
        done = self.doctor()
        self.assertEqual({e["harm"] for e in done.events if e["type"] == "finding"}, {"time"})
        self.assertEqual({e["kind"] for e in done.events if e["type"] == "finding"}, {"kv", "anchor"})
        mended = self.doctor("--mend")
        self.assertEqual(mended.code, 0, mended)
        self.daemon.start()
        self.turn("--session", self.session, SECOND)
        self.assertEqual(self.daemon.stop(), 0)
        self.assertEqual(self.doctor().code, 0)

    def test_a_damaged_log_is_refused_by_name(self):
        log = max(path for path in self.files(".log") if path.stat().st_size > 0)  # the newest
        flip(log, random.randrange(log.stat().st_size))
        done = self.doctor()
        self.assertEqual([e["kind"] for e in done.events[:-1]], ["log"], done)
        self.assertIn(log.name, done.events[0]["what"])
        command = [BIN / "agentd", "--model", MODEL, "--data", self.daemon.data, "--socket", self.daemon.socket]
        refused = subprocess.run(command, capture_output=True, timeout=PATIENCE_S)
        self.assertEqual(refused.returncode, 5, refused)
        self.assertIn(log.name, refused.stderr.decode())
        self.assertEqual(self.doctor("--cut-log").code, 0)
        self.daemon.start()
        self.turn("Hello")

    def test_damaged_events_refuse_their_session_alone(self):
        # A start moves what is in the log into tables.
        self.daemon.start()
        self.assertEqual(self.daemon.stop(), 0)
        refused = None
        for table in self.files(".sst"):
            flip(table, 20)
            done = self.doctor()
            findings = [e for e in done.events if e["type"] == "finding"]
            self.assertIn(table.name, " ".join(e["what"] for e in findings), done)
            if any(e["kind"] == "event" for e in findings):
                refused = {session for e in findings if e["harm"] == "session" for session in e["sessions"]}
                break
            flip(table, 20)
        self.assertTrue(refused, "no table held events")
        self.daemon.start()
        for session in (self.session, self.other):
            shown = self.daemon.ctl("show", "--json", session)
            self.assertEqual(shown.code == 0, session not in refused, shown)
            if session in refused:
                self.assertRegex(shown.err, r"event \d+ of timeline")
        self.turn("Hello")


if __name__ == "__main__":
    unittest.main(verbosity=2)
