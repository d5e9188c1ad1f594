"""Logins at an MCP server (tests/mcp/oauth_server.py) with a real daemon: agentctl mcp, a browser that follows redirects, SIGKILL after it."""
import json
import re
import stat
import subprocess
import sys
import unittest
import urllib.error
import urllib.request

from harness import ROOT, Daemon


class NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


def end_of(url):
    """Where a browser that opens `url` is sent back to."""
    try:
        urllib.request.build_opener(NoRedirect).open(url, timeout=30)
    except urllib.error.HTTPError as redirect:
        return redirect.headers["Location"]
    raise AssertionError("no redirect")


class Mcp(unittest.TestCase):
    def serve(self, *ways):
        server = subprocess.Popen([sys.executable, ROOT / "tests/mcp/oauth_server.py", *ways], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.addCleanup(lambda: (server.stdin.close(), server.wait(30), server.stdout.close()))
        return server.stdout.readline().split()[0].decode()

    def daemon(self, port):
        daemon = Daemon()
        self.addCleanup(daemon.remove)
        file = daemon.directory / "agentd.toml"
        # A rule about tools that the server will have once somebody has logged in.
        file.write_text(f'[[mcp]]\nname = "mail"\nurl = "http://127.0.0.1:{port}/mcp"\n[[rule]]\ntool = "mail__*"\naction = "ask"\n')
        daemon.arguments = ["--config", str(file)]
        return daemon.start()

    def begin(self, daemon, *arguments, stdin=subprocess.DEVNULL):
        login = subprocess.Popen(daemon.command("mcp", "login", "mail", *arguments), stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(lambda: (login.kill(), login.communicate()))
        line = next(line for line in login.stdout if line.startswith("  http"))
        return login, line.strip()

    def tools(self, daemon):
        return [t["name"] for t in daemon.ctl("info", "--json").events[0]["tools"] if t["name"].startswith("mail__")]

    def test_login(self):
        daemon = self.daemon(self.serve())
        self.assertRegex(daemon.ctl("info").out, r"mail +needs a login: agentctl mcp login mail")
        self.assertEqual(self.tools(daemon), [])
        login, url = self.begin(daemon)
        self.assertIn("code_challenge_method=S256", url)
        back = end_of(url)
        # Somebody else's answer neither ends the login nor spoils it.
        with self.assertRaises(urllib.error.HTTPError):
            urllib.request.urlopen(re.sub("state=[^&]*", "state=x", back), timeout=30)
        self.assertEqual(urllib.request.urlopen(back, timeout=30).status, 200)
        out, err = login.communicate(timeout=60)
        self.assertEqual(login.returncode, 0, err)
        self.assertIn("mail: 1 tool", out)
        self.assertEqual(self.tools(daemon), ["mail__echo"])  # without a new start

        record = daemon.data / "mcp-tokens" / "mail.json"
        self.assertEqual(stat.S_IMODE(record.stat().st_mode), 0o600)
        kept = json.loads(record.read_text())
        daemon.kill()
        daemon.start()
        self.assertEqual(self.tools(daemon), ["mail__echo"])
        self.assertEqual(daemon.ctl("mcp", "logout", "mail").code, 0)
        daemon.stop()
        daemon.start()
        self.assertRegex(daemon.ctl("info").out, r"mail +needs a login")
        for secret in (kept["access_token"], kept["refresh_token"]):
            self.assertNotIn(secret, daemon.log.read_text())
            self.assertNotIn(secret, record.read_text())

    def test_pasted_answers_and_mistakes(self):
        daemon = self.daemon(self.serve())
        login, url = self.begin(daemon, stdin=subprocess.PIPE)
        out, err = login.communicate("nonsense\n" + end_of(url) + "\n", timeout=60)
        self.assertEqual(login.returncode, 0, err)
        self.assertIn("mail: 1 tool", out)
        wrong = daemon.ctl("mcp", "login", "male")
        self.assertEqual(wrong.code, 1, wrong)
        self.assertIn("there is no MCP server male; there are mail", wrong.err)

    def test_a_hostile_authorization_server(self):
        for way, says in (("wrong-issuer", "of another issuer"), ("no-s256", "PKCE"), ("wrong-resource", "another resource")):
            daemon = self.daemon(self.serve(way))
            done = daemon.ctl("mcp", "login", "mail")
            self.assertEqual(done.code, 1, done)
            self.assertIn(says, done.err)


if __name__ == "__main__":
    unittest.main(verbosity=2)
