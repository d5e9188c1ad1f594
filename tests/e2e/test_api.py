"""The API under clients that do not behave: the C++ program api_probe, against a daemon of this test's own."""
import os
import subprocess
import unittest

from harness import BIN, Daemon, PATIENCE_S


class Api(unittest.TestCase):
    def test_probe(self):
        probe = os.environ.get("AGENTD_API_PROBE", str(BIN.parent / "tests" / "api_probe"))
        with Daemon() as daemon:
            done = subprocess.run([probe], env={**os.environ, "AGENTD_SOCKET": str(daemon.socket)}, timeout=4 * PATIENCE_S, stdin=subprocess.DEVNULL)
            self.assertEqual(done.returncode, 0)
            self.assertTrue(daemon.alive())
            self.assertEqual(daemon.stop(), 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
