"""A real daemon on a directory of its own, and agentctl to talk to it.

AGENTD_BIN names the folder of the binaries, AGENTD_E2E_MODEL a model directory (default: the shipped one), AGENTD_E2E_BACKEND
what evaluates it (default: cpu).
"""
import atexit
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("AGENTD_BIN", ROOT / "build/bin"))
MODEL = pathlib.Path(os.environ.get("AGENTD_E2E_MODEL", ROOT / "examples/model"))
BACKEND = os.environ.get("AGENTD_E2E_BACKEND", "cpu")
# Nothing here should take near as long; sanitizers make everything slow.
PATIENCE_S = 240


class Result:
    """What a finished agentctl left behind."""

    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    @property
    def events(self):
        return [json.loads(line) for line in self.out.splitlines()]

    def of_type(self, name):
        return [e for e in self.events if e["type"] == name]

    def __repr__(self):
        return f"exit code {self.code}\n--- stdout\n{self.out[-4000:]}\n--- stderr\n{self.err[-4000:]}"


class Daemon:
    """Started by start(); any number of kills and restarts on the same data."""

    def __init__(self, *arguments, limits=None, model=MODEL, environment=None):
        """`limits`: {resource.RLIMIT_...: (soft, hard)} of the daemon's process; `environment`: more variables for it."""
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="agentd-e2e."))
        self.socket = self.directory / "agentd.sock"
        self.data = self.directory / "data"
        self.log = self.directory / "agentd.log"
        self.arguments = list(arguments)
        self.limits = limits or {}
        self.model = model
        self.environment = environment or {}
        self.process = None

    def __enter__(self):
        return self.start()

    def __exit__(self, kind, *_):
        if kind is not None and self.log.exists():
            print(f"--- end of the daemon's log\n{self.log.read_text(errors='replace')[-6000:]}")
        self.remove()

    def launch(self, *more):
        """Begins to start."""
        with open(self.log, "ab") as log:
            command = [BIN / "agentd", "--model", self.model, "--backend", BACKEND, "--data", self.data, "--socket", self.socket]
            self.process = subprocess.Popen([*map(str, command), *self.arguments, *more], stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=self.limit, env={**os.environ, **self.environment})

    def start(self, *more):
        self.launch(*more)
        up = self.ctl("--wait", "60", "info")
        if up.code != 0:
            raise RuntimeError(f"the daemon does not come up: {up}\n{self.log.read_text(errors='replace')[-4000:]}")
        return self

    def limit(self):
        for which, values in self.limits.items():
            resource.setrlimit(which, values)

    def kill(self):
        """SIGKILL: nothing of the daemon runs any more when this returns."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE_S)

    def stop(self, number=signal.SIGTERM):
        """SIGTERM, or another way to ask; returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    def remove(self):
        if self.process is not None and self.process.poll() is None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def alive(self):
        return self.process.poll() is None

    # ---- agentctl

    def command(self, *arguments):
        return [str(BIN / "agentctl"), "--socket", str(self.socket), *map(str, arguments)]

    def ctl(self, *arguments, text=None, environment=None):
        """Runs agentctl to its end. `text` (str or bytes) is its standard input."""
        data = text.encode() if isinstance(text, str) else text
        stdin = {"input": data} if data is not None else {"stdin": subprocess.DEVNULL}
        done = subprocess.run(self.command(*arguments), capture_output=True, timeout=PATIENCE_S, env={**os.environ, **(environment or {})}, **stdin)
        return Result(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))

    def begin(self, *arguments):
        """An agentctl that runs on its own; its output comes as lines through .stdout."""
        return subprocess.Popen(self.command(*arguments), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    # ---- what the tests compare

    def session(self, session_id):
        return next(s for s in self.ctl("sessions", "--json").events if s["id"] == session_id)

    def events(self, session_id):
        shown = self.ctl("show", "--json", session_id)
        if shown.code != 0:
            raise RuntimeError(str(shown))
        return shown.events[1:]

    def tokens(self, session_id):
        """Every token of the context: [(sampled, id)]."""
        return [(e["sampled"], i) for e in self.events(session_id) if e["type"] == "tokens" for i in e["ids"]]

    def workspace(self, session_id):
        return tree(pathlib.Path(self.session(session_id)["workspace"]))


class WithDaemon(unittest.TestCase):
    """Tests that share one daemon."""

    @classmethod
    def setUpClass(cls):
        cls.daemon = Daemon()
        cls.addClassCleanup(cls.daemon.remove)
        cls.daemon.start()

    def ctl(self, *arguments, **more):
        return self.daemon.ctl(*arguments, **more)


def tree(root):
    """{relative path: contents, or "dir", or "-> target"} of everything below."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = "-> " + os.readlink(path)
        elif path.is_dir():
            found[name] = "dir"
        else:
            found[name] = path.read_bytes()
    return found


def folder(files):
    """A new folder with these files, {name: text}, that goes when the tests end."""
    root = pathlib.Path(tempfile.mkdtemp(prefix="agentd-e2e-files."))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def first_gap(events):
    """The first sequence number that is not one more than the one before; None if there is none."""
    last = 0
    for event in events:
        if event["seq"] != last + 1:
            return event["seq"]
        last = event["seq"]
    return None


def wait_until(condition, what, seconds=PATIENCE_S):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError(f"waited {seconds} s in vain: {what}")
