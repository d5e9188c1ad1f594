"""A daemon whose sessions are encrypted: nothing of them in the store's files, the right key or a clear error, another key."""
import os
import pathlib
import secrets
import subprocess
import tempfile
import unittest

from harness import BACKEND, BIN, MODEL, Daemon

TASK = "What is 17 + 25?"
REFUSED = 3  # exit code of a wrong configuration


class Encryption(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.TemporaryDirectory(prefix="agentd-keys.")
        self.addCleanup(self.directory.cleanup)

    def key(self, name):
        path = pathlib.Path(self.directory.name) / name
        path.write_text(secrets.token_hex(32) + "\n")
        path.chmod(0o600)
        return path

    def agentd(self, daemon, *arguments, model=True, environment=None):
        """Runs agentd to its end; its exit code and what it said."""
        command = [BIN / "agentd", "--data", daemon.data, "--socket", daemon.socket, *arguments]
        if model:
            command += ["--model", MODEL, "--backend", BACKEND]
        done = subprocess.run([str(part) for part in command], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
                              env={**os.environ, **(environment or {})})
        return done.returncode, done.stderr

    def files_with(self, daemon, text):
        return [path for path in (daemon.data / "store").rglob("*") if path.is_file() and text.encode() in path.read_bytes()]

    def test_a_life_with_two_keys(self):
        old, new = self.key("old"), self.key("new")
        with Daemon("--store-key-file", str(old)) as daemon:
            done = daemon.ctl("run", "--json", "--max-tokens", "200", TASK)
            self.assertEqual(done.code, 0, done)
            session = done.events[0]["id"]
            tokens = daemon.tokens(session)
            daemon.kill()
            self.assertEqual(self.files_with(daemon, TASK), [])
            daemon.start()
            self.assertEqual(daemon.tokens(session), tokens)
            self.assertEqual(daemon.stop(), 0)

            code, said = self.agentd(daemon)
            self.assertEqual(code, REFUSED, said)
            self.assertRegex(said, "is encrypted: give its key, [0-9a-f]{16}")
            code, said = self.agentd(daemon, "--store-key-file", new)
            self.assertEqual(code, REFUSED, said)
            self.assertRegex(said, "encrypted with key [0-9a-f]{16}, which is not given")
            code, said = self.agentd(daemon, "--rewrite-store", "--store-key-file", new, "--old-store-key-file", old, model=False)
            self.assertEqual(code, 0, said)
            self.assertRegex(said, "rewritten with key [0-9a-f]{16}")

            daemon.arguments = ["--store-key-file", str(new)]
            daemon.start()
            self.assertEqual(daemon.tokens(session), tokens)
            again = daemon.ctl("run", "--json", "--session", session, "What is 20 + 3?")
            self.assertEqual(again.code, 0, again)

    def test_a_store_that_was_not_encrypted(self):
        key = self.key("key")
        with Daemon() as daemon:
            session = daemon.ctl("run", "--json", "--max-tokens", "200", TASK).events[0]["id"]
            tokens = daemon.tokens(session)
            self.assertEqual(daemon.stop(), 0)
            self.assertNotEqual(self.files_with(daemon, TASK), [], "the control sees nothing")
            code, said = self.agentd(daemon, "--store-key-file", key)
            self.assertEqual(code, REFUSED, said)
            self.assertIn("is not encrypted", said)
            hex_key = key.read_text().strip()
            code, said = self.agentd(daemon, "--rewrite-store", model=False, environment={"AGENTD_STORE_KEY": hex_key})
            self.assertEqual(code, 0, said)
            self.assertEqual(self.files_with(daemon, TASK), [])
            # From the environment, which no longer shows it then.
            os.environ["AGENTD_STORE_KEY"] = hex_key
            self.addCleanup(os.environ.pop, "AGENTD_STORE_KEY")
            daemon.start()
            self.assertEqual(daemon.tokens(session), tokens)
            shown = pathlib.Path(f"/proc/{daemon.process.pid}/environ").read_bytes()
            self.assertIn(b"AGENTD_STORE_KEY", shown)
            self.assertNotIn(hex_key.encode(), shown)

    def test_keys_that_are_none(self):
        short, open_to_all = self.key("short"), self.key("open")
        short.write_text("0123")
        open_to_all.chmod(0o644)
        with Daemon() as daemon:
            for arguments, message in [(["--store-key-file", short], "64 hex digits"),
                                       (["--store-key-file", open_to_all], "chmod 600"),
                                       (["--store-key-file", self.directory.name + "/none"], "/none"),
                                       (["--old-store-key-file", self.key("good")], "needs a current one")]:
                code, said = self.agentd(daemon, *arguments)
                self.assertEqual(code, REFUSED, said)
                self.assertIn(message, said)


if __name__ == "__main__":
    unittest.main(verbosity=2)
