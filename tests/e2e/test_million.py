"""examples/million.py with a short prompt: killed in the prefill and after it, and once more without a kill."""
import os
import re
import subprocess
import sys
import unittest

from harness import BIN, MODEL, PATIENCE_S, ROOT


class Million(unittest.TestCase):
    def test_twenty_thousand_tokens(self):
        done = subprocess.run(
            [sys.executable, ROOT / "examples/million.py", "--tokens", "20000", "--once", "--model", MODEL],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=2 * PATIENCE_S, env={**os.environ, "AGENTD_BIN": str(BIN)})
        out = done.stdout.decode()
        print(out, flush=True)
        self.assertEqual(done.returncode, 0, out)
        # It says so itself, and by what: a script that compared nothing would say nothing.
        self.assertEqual(len(re.findall(r"same answers? +yes, [1-9]\d*", out)), 2)
        self.assertRegex(out, r"it went on from 8,192")
        self.assertRegex(out, r"restored 2\d,\d{3}, replayed \d+, prefilled again 0")


if __name__ == "__main__":
    unittest.main(verbosity=2)
