"""The six built-in tools, run for real in a folder: what a tool answers here is what it answers in the daemon
(tools/RESULTS.md). bash is a real bash; the other five do in Python what the daemon does in C++."""
import os
import re
import shutil
import subprocess
import tempfile

LIMIT_BYTES = 16384


class Workspace:
    def __init__(self, parent=None):
        parent = parent or ("/dev/shm" if os.path.isdir("/dev/shm") else None)
        self.root = tempfile.mkdtemp(prefix="ws", dir=parent)

    def close(self):
        shutil.rmtree(self.root, ignore_errors=True)

    def clear(self):
        for entry in os.scandir(self.root):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)

    def full(self, path):
        return os.path.join(self.root, path)

    def put(self, path, content):
        os.makedirs(os.path.dirname(self.full(path)) or self.root, exist_ok=True)
        with open(self.full(path), "w", newline="") as f:
            f.write(content)

    def get(self, path):
        try:
            with open(self.full(path), newline="") as f:
                return f.read()
        except OSError:
            return None

    # ------------------------------------------------------------------ tools
    def call(self, name, arguments):
        handler = getattr(self, "tool_" + name, None)
        if handler is None:
            return f"Error: unknown tool {name}"
        try:
            return cut(handler(**arguments))
        except TypeError as e:
            return f"Error: {name}: {e}"

    def tool_bash(self, command, timeout=60):
        try:
            done = subprocess.run(["/bin/bash", "-c", command], cwd=self.root, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, timeout=timeout,
                                  env={"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": self.root, "LC_ALL": "C.UTF-8"})
            output, code, note = done.stdout, done.returncode, None
        except subprocess.TimeoutExpired as e:
            output, code, note = e.stdout or b"", 0, f"[timed out after {timeout} s]"
        text = output.decode("utf-8", "replace")
        text = text[:-1] if text.endswith("\n") else text
        if code > 0:
            note = f"[exit code {code}]"
        elif code < 0:
            note = f"[killed by signal {-code}]"
        if note:
            return text + "\n" + note if text else note
        return text or "(no output)"

    def tool_read_file(self, path, offset=None, limit=None):
        full = self.full(path)
        if os.path.isdir(full):
            return f"Error: {path}: is a directory"
        if not os.path.exists(full):
            return f"Error: {path}: no such file"
        with open(full, "rb") as f:
            data = f.read()
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            return f"Error: {path}: not a text file"
        if "\0" in text:
            return f"Error: {path}: not a text file"
        if not text:
            return "(empty file)"
        text = text[:-1] if text.endswith("\n") else text
        if offset is not None or limit is not None:
            rows = text.split("\n")
            first = offset or 1
            if first > len(rows):
                return f"Error: {path}: offset {first} is past the end ({len(rows)} lines)"
            text = "\n".join(rows[first - 1:first - 1 + limit if limit else None])
        return text

    def tool_write_file(self, path, content):
        full = self.full(path)
        if os.path.isdir(full):
            return f"Error: {path}: is a directory"
        try:
            self.put(path, content)
        except OSError:
            return f"Error: {path}: permission denied"
        return f"Wrote {len(content.encode())} bytes to {path}"

    def tool_edit_file(self, path, old, new):
        if not os.path.isfile(self.full(path)):
            return f"Error: {path}: no such file"
        text = self.get(path)
        times = text.count(old) if old else 0
        if times == 0:
            return f"Error: {path}: text not found"
        if times > 1:
            return f"Error: {path}: text occurs {times} times"
        self.put(path, text.replace(old, new))
        return f"Edited {path}"

    def tool_list_dir(self, path="."):
        full = self.full(path)
        if not os.path.exists(full):
            return f"Error: {path}: no such directory"
        if not os.path.isdir(full):
            return f"Error: {path}: not a directory"
        names = [e.name + "/" if e.is_dir(follow_symlinks=False) else e.name for e in os.scandir(full)]
        names.sort(key=lambda n: n.rstrip("/").encode())
        return "\n".join(names) or "(empty directory)"

    def tool_grep(self, pattern, path="."):
        full = self.full(path)
        if not os.path.exists(full):
            return f"Error: {path}: no such file"
        try:
            wanted = re.compile(pattern)
        except re.error as e:
            return f"Error: bad pattern: {e}"
        files = []
        if os.path.isfile(full):
            files = [full]
        for folder, folders, names in os.walk(full):
            folders[:] = [d for d in folders if d != ".git"]
            files += [os.path.join(folder, n) for n in names]
        hits = []
        for file in sorted(files, key=lambda f: os.path.relpath(f, self.root).encode()):
            with open(file, "rb") as f:
                data = f.read()
            if b"\0" in data:
                continue
            rows = data.decode("utf-8", "replace").split("\n")
            rows = rows[:-1] if rows[-1] == "" else rows
            shown = os.path.relpath(file, self.root)
            hits += [f"{shown}:{i}:{row}" for i, row in enumerate(rows, 1) if wanted.search(row)]
        return "\n".join(hits) or "(no matches)"


def cut(text):
    """Cuts a long answer in the middle, at line ends where there are any."""
    data = text.encode()
    if len(data) <= LIMIT_BYTES:
        return text
    head, tail = data[:LIMIT_BYTES // 2], data[-LIMIT_BYTES // 2:]
    if b"\n" in head:
        head = head[:head.rindex(b"\n")]
    if b"\n" in tail:
        tail = tail[tail.index(b"\n") + 1:]
    gap = f"[... {len(data) - len(head) - len(tail)} bytes left out ...]"
    return head.decode("utf-8", "ignore") + "\n" + gap + "\n" + tail.decode("utf-8", "ignore")
