"""What the machine refuses: disk space and descriptors. The daemon survives, says what it lacks, goes on when it is there."""
import contextlib
import json
import os
import pathlib
import resource
import socket
import subprocess
import tempfile
import threading
import time
import unittest

from harness import Daemon, folder, wait_until

TASK = "Run `sleep 3; echo done`"


class FullDisk(unittest.TestCase):
    def setUp(self):
        if os.geteuid() != 0:
            self.skipTest("a disk of 24 MiB to fill: only root can mount one")
        self.disk = pathlib.Path(tempfile.mkdtemp(prefix="agentd-e2e-disk."))
        self.addCleanup(os.rmdir, self.disk)
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", self.disk], capture_output=True)
        if mounted.returncode != 0:
            self.skipTest(f"a disk of 24 MiB to fill: {mounted.stderr.decode()}")
        self.addCleanup(subprocess.run, ["umount", "-l", self.disk], check=True)

    def fill(self):
        with open(self.disk / "fill", "ab", buffering=0) as file:
            for size in (1 << 20, 4096):
                try:
                    while file.write(bytes(size)):
                        pass
                except OSError:
                    pass

    def test_the_turn_waits_for_space(self):
        daemon = Daemon()
        self.addCleanup(daemon.remove)
        daemon.data = self.disk / "data"
        daemon.start()
        self.assertEqual(daemon.ctl("run", "-q", "Hello").code, 0)
        running = daemon.begin("run", TASK)
        lines = []
        reading = threading.Thread(target=lambda: lines.extend(running.stderr))
        reading.start()
        wait_until(lambda: any(b"sleep 3" in line for line in list(lines)), "the call begins")

        def waits():
            self.fill()
            self.assertTrue(daemon.alive())
            return any(b"waiting for disk space" in line for line in list(lines)) or running.poll() is not None

        wait_until(waits, "the turn says what it waits for", 60)
        time.sleep(3)
        self.assertTrue(daemon.alive())
        self.assertIsNone(running.poll(), lines)
        refused = daemon.ctl("run", "Hello")  # nothing new begins meanwhile, and says why
        self.assertNotEqual(refused.code, 0, refused)
        (self.disk / "fill").unlink()
        self.assertEqual(running.wait(100), 0, lines)
        reading.join()
        running.communicate()
        self.assertEqual(sum(b"waiting for disk space" in line for line in lines), 1, lines)
        self.assertEqual(daemon.ctl("run", "-q", "Hello").code, 0)
        self.assertEqual(daemon.stop(), 0)


    def test_a_disk_that_fills_again_and_again(self):
        """Every turn ends, whatever its tools met, and what was told is in the log."""
        tasks = ["Read shop.cfg and multiply width by height and write the result to area.txt.", "Append fig to words.txt.", "Set depth to 99 in shop.cfg."]
        files = {"shop.cfg": "width = 12\nheight = 30\ndepth = 7\n", "words.txt": "amber\nbirch\n"}
        daemon = Daemon()
        self.addCleanup(daemon.remove)
        daemon.data = self.disk / "data"
        daemon.start()

        def play(disturb):
            session = None
            for task in tasks:
                where = ["--session", session] if session else ["--workspace", folder(files), "--seed", "11"]
                running = daemon.begin("run", "--json", *where, task)
                reading = threading.Thread(target=running.stderr.read)
                reading.start()
                lines = [running.stdout.readline()]
                session = session or json.loads(lines[0])["id"]
                while lines[-1] and b'"seq":' not in lines[-1]:  # without space a turn does not begin
                    lines.append(running.stdout.readline())
                disturb()
                lines += running.stdout.readlines()
                reading.join()
                self.assertEqual(running.wait(100), 0, lines)
                # Told before the disk was full or after: it is in the log.
                told = [e for e in map(json.loads, lines) if e.get("seq")]
                logged = {e["seq"]: e for e in daemon.events(session)}
                for event in told:
                    self.assertEqual(logged[event["seq"]], event)

        def fill_for_a_while():
            for _ in range(3):
                self.fill()
                time.sleep(0.3)
                (self.disk / "fill").unlink()
                time.sleep(0.05)

        play(fill_for_a_while)
        self.assertEqual(daemon.ctl("run", "-q", "Hello").code, 0)
        self.assertEqual(daemon.stop(), 0)


class Descriptors(unittest.TestCase):
    def test_more_connections_than_descriptors(self):
        daemon = Daemon(limits={resource.RLIMIT_NOFILE: (1024, 1024)})
        self.addCleanup(daemon.remove)
        daemon.start()
        running = daemon.begin("run", "--json", TASK)
        while b'"tool_started"' not in running.stdout.readline():
            pass
        with contextlib.ExitStack() as connections:
            for _ in range(1100):
                connections.enter_context(socket.socket(socket.AF_UNIX)).connect(str(daemon.socket))
            self.assertLess(len(os.listdir(f"/proc/{daemon.process.pid}/fd")), 700)
            _, err = running.communicate(timeout=100)
            self.assertEqual(running.returncode, 0, err)  # what was connected before is served, with room for its files
        done = daemon.ctl("run", "-q", "Hello")
        self.assertEqual(done.code, 0, done)
        self.assertIn("descriptors are in use", daemon.log.read_text())
        self.assertEqual(daemon.stop(), 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
