#!/usr/bin/env python3
"""A session of a million tokens on the model that comes with agentd, killed twice and resumed.

Builds one long prompt from documents of this machine, has agentd prefill it, kills the daemon with SIGKILL in the middle of the
prefill and again after it, and prints what the prefill took, what the resume took, and their ratio. The answer after the second
kill must be the one that was given before it, token for token.

    examples/million.py [--tokens N] [--documents DIR] [--data DIR] [--once] [--keep]

Needs build/bin/agentd and agentctl (examples/quickstart.sh builds them). With the default of 1,000,000 tokens it takes most of an
hour on 2 cores; try --tokens 50000 first. Python's standard library only. Leaves nothing running.

The model was trained on 8,192 tokens: what it answers about a million is no measure of anything but the state, which must be right.
"""
import argparse
import gzip
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
BIN = pathlib.Path(os.environ.get("AGENTD_BIN", ROOT / "build/bin"))
# Where text is found on a Debian machine, after the repository's own.
SYSTEM_DOCUMENTS = ["/usr/share/common-licenses", "/usr/share/doc", "/usr/share/perl", "/usr/lib/python3", "/usr/include"]
TEXT_ENDINGS = {"", ".md", ".txt", ".h", ".hpp", ".cc", ".c", ".py", ".pm", ".pl", ".sh", ".cmake", ".proto", ".html", ".gz", ".rst"}
LARGEST_FILE = 1 << 20
QUESTION = "What was the first document about, and what the last?"
ANSWER_TOKENS = 48
ANCHOR_TOKENS = 8192  # a prefill that is cut off goes on from a multiple of this
OWN = ["README.md", "sessions/FORMAT.md", "model", "sessions", "agentd", "tools", "sandbox", "proto", "examples", "tests"]


def say(text=""):
    print(text, flush=True)


def fail(text):
    sys.exit(f"million: {text}")


# ---- documents


def files_of(place):
    """Every file of a folder, in one order."""
    place = pathlib.Path(place)
    if place.is_file():
        yield place
        return
    for folder, folders, names in os.walk(place):
        folders.sort()
        for name in sorted(names):
            path = pathlib.Path(folder, name)
            if path.suffix in TEXT_ENDINGS and not path.is_symlink():
                yield path


def text_of(path):
    """A file's text; None if it is none, or as long as a data file."""
    try:
        raw = path.read_bytes() if path.stat().st_size <= LARGEST_FILE else b""
        if path.suffix == ".gz":
            raw = gzip.decompress(raw)
        text = raw.decode("utf-8")
    except (OSError, EOFError, ValueError, gzip.zlib.error):
        return None
    return text if 0 < len(raw) <= LARGEST_FILE and "\0" not in text else None


def count_tokens(model, texts):
    """Tokens of each text."""
    lines = "\n".join(json.dumps(text) for text in texts)
    run = subprocess.run([BIN / "v4", "tokenize", "--plain", "--model", model], input=lines.encode(), stdout=subprocess.PIPE, check=True)
    return [line.count(b",") + 1 for line in run.stdout.splitlines()]


def build_prompt(model, places, wanted):
    """About `wanted` tokens of documents, and how many there are."""
    parts, total, batch = [], 0, []

    def add(documents):
        nonlocal total
        for (name, text), count in zip(documents, count_tokens(model, [text for _, text in documents])):
            if total >= wanted:
                return
            if total + count > wanted:  # the last one is cut
                text = text[: int(len(text) * (wanted - total) / count)]
                count = wanted - total
            parts.append(f"--- {name}\n{text}\n")
            total += count

    seen = set()
    for place in places:
        for path in files_of(place):
            text = text_of(path)
            if text is None or (key := hash(text)) in seen:
                continue
            seen.add(key)
            batch.append((str(path), text))
            if sum(len(text) for _, text in batch) > 1 << 20 or total == 0:
                add(batch)
                batch = []
            if total >= wanted:
                return "".join(parts), len(parts)
    add(batch)
    if total < wanted * 0.9:
        fail(f"the documents are only {total:,} tokens: give more with --documents, or fewer --tokens")
    return "".join(parts), len(parts)


# ---- the daemon


class Daemon:
    def __init__(self, model, data, log):
        self.model, self.data, self.log = model, data, log
        self.socket = data.parent / "agentd.sock"
        self.process = None

    def start(self):
        """Seconds until it serves."""
        began = time.monotonic()
        command = [BIN / "agentd", "--model", self.model, "--data", self.data, "--socket", self.socket]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen([str(part) for part in command], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        if self.ctl("--wait", "60", "info").returncode != 0:
            fail(f"the daemon does not come up:\n{self.log.read_text()[-2000:]}")
        return time.monotonic() - began

    def processor_seconds(self):
        """Of all its threads, so far."""
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self):
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait()

    def command(self, *arguments):
        return [str(part) for part in (BIN / "agentctl", "--socket", self.socket, *arguments)]

    def ctl(self, *arguments):
        return subprocess.run(self.command(*arguments), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def events(self, *arguments):
        """Those of a command, as they come."""
        with subprocess.Popen(self.command(*arguments), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as run:
            for line in run.stdout:
                yield json.loads(line)


class Progress:
    """A line that stays on a terminal, and one for each 2% elsewhere."""

    def __init__(self):
        self.terminal = sys.stdout.isatty()
        self.points = []  # (time, tokens)
        self.said = 0.0

    def show(self, done, total):
        now = time.monotonic()
        self.points.append((now, done))
        # The rate falls as the past grows: that of the last half minute tells more than the mean, and the end will be later.
        first = next(point for point in self.points if now - point[0] < 30)
        rate = (done - first[1]) / (now - first[0]) if now > first[0] else 0
        if not self.terminal and done < total - 1 and done / total < self.said + 0.02:
            return
        self.said = done / total
        line = f"  {done:>9,} of {total:,} tokens, {rate:,.0f} tokens/s"
        if rate:
            line += f", {(total - done) / rate / 60:.1f} min left at this rate"
        if self.terminal:
            print(f"\r{line}\033[K", end="" if done < total - 1 else "\n", flush=True)
        else:
            say(line)


def forget_pages(data):
    """Takes the store's files out of the page cache."""
    os.sync()
    for folder, _, names in os.walk(data):
        for name in names:
            try:
                fd = os.open(os.path.join(folder, name), os.O_RDONLY)
            except OSError:
                continue
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def disk_bytes(data):
    return sum(os.lstat(os.path.join(folder, name)).st_blocks * 512 for folder, _, names in os.walk(data) for name in names)


def follow(events, *, kill_at=None, daemon=None):
    """The turn's events to its end, with its progress shown. Kills the daemon as soon as `kill_at` tokens are evaluated."""
    turn = {"sampled": [], "resumed": None, "end": None, "first": None, "first_done": None, "last": None, "done": 0, "id": None, "first_token": None, "processor": None}
    progress = Progress()
    for event in events:
        now = time.monotonic()
        if event["type"] == "session":
            turn["id"] = event["id"]
        elif event["type"] == "progress" and event["total"]:
            if turn["first"] is None:
                turn["first"], turn["first_done"] = now, event["done"]
            turn["last"], turn["done"], turn["total"] = now, event["done"], event["total"]
            progress.show(event["done"], event["total"])
            if kill_at is not None and event["done"] >= kill_at:
                turn["processor"] = daemon.processor_seconds()
                daemon.kill()
                if progress.terminal:
                    say()
                kill_at = None
        elif event["type"] == "tokens" and event["sampled"]:
            turn["first_token"] = turn["first_token"] or now
            turn["sampled"] += event["ids"]
        elif event["type"] == "resumed":
            turn["resumed"] = event
        elif event["type"] == "turn_finished":
            turn["end"] = event
        elif event["type"] == "error":
            turn["end"] = event
    return turn


def ask(daemon, session, question):
    began = time.monotonic()
    turn = follow(daemon.events("run", "--json", "--session", session, question))
    if turn["end"] is None or turn["end"].get("end") not in ("answer", "token_limit"):
        fail(f"the question was not answered: {turn['end']}")
    turn["seconds"] = turn["first_token"] - began
    return turn


def shown_resume(turn):
    event = turn["resumed"]
    return f"restored {event['restored']:,}, replayed {event['replayed']:,}, prefilled again {event['prefilled_again']:,}"


SETTINGS = ["--no-tools", "--seed", "7", "--temperature", "1", "--max-tokens", ANSWER_TOKENS]


def prefill_with_a_kill(daemon, prompt_file, tokens):
    """The session's first turn: the documents. Killed in the middle, it goes on.

    Returns (session, seconds, seconds of processor time, tokens evaluated, tokens sampled).
    """
    began = time.monotonic()
    turn = follow(daemon.events("run", "--json", *SETTINGS, "--file", prompt_file), kill_at=tokens // 2, daemon=daemon)
    if turn["processor"] is None:
        fail(f"the prefill ended before it was half done: {turn['end']}")
    session, killed_at, first_half, processor = turn["id"], turn["done"], turn["last"] - began, turn["processor"]
    forget_pages(daemon.data)
    began = time.monotonic()
    ready = daemon.start()
    turn = follow(daemon.events("watch", "--json", "--until-idle", session))
    if turn["end"] is None or turn["end"].get("end") not in ("answer", "token_limit"):
        fail(f"the prefill did not end: {turn['end']}")
    restored = turn["resumed"]["restored"]
    say(f"  killed with SIGKILL at {killed_at:,} tokens; started again in {ready:.1f} s, it went on from {restored:,}: {killed_at - restored:,} evaluated twice")
    if killed_at - restored > ANCHOR_TOKENS + 2048 or turn["resumed"]["prefilled_again"] != 0:
        fail(f"more than the way back to the last anchor was evaluated again: {shown_resume(turn)}")
    second_half = turn["last"] - began
    return session, first_half + second_half, processor + daemon.processor_seconds(), killed_at + turn["total"] - restored, turn["sampled"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=1_000_000, help="length of the prompt (default: 1,000,000)")
    parser.add_argument("--documents", action="append", help="folder of text to take instead of this machine's own; repeat for more")
    parser.add_argument("--model", type=pathlib.Path, default=ROOT / "examples/model")
    parser.add_argument("--data", type=pathlib.Path, help="folder for the daemon's data (default: a temporary one)")
    parser.add_argument("--once", action="store_true", help="also evaluate all of it once without a kill, in a store of its own, and compare")
    parser.add_argument("--keep", action="store_true", help="leave data and log in place and say where")
    options = parser.parse_args()
    if options.tokens < 20_000:
        parser.error("--tokens: give 20000 or more, so that there are anchors to go on from")

    scratch = pathlib.Path(tempfile.mkdtemp(prefix="agentd-million.", dir=options.data))
    daemon = Daemon(options.model, scratch / "data", scratch / "log")
    try:
        run(options, scratch, daemon)
    finally:
        daemon.stop()
        if options.keep:
            say(f"Data and log: {scratch}")
        else:
            shutil.rmtree(scratch, ignore_errors=True)


def run(options, scratch, daemon):
    say("== Documents")
    places = options.documents or [*(ROOT / name for name in OWN), *SYSTEM_DOCUMENTS]
    prompt, count = build_prompt(options.model, places, options.tokens)
    prompt_file = scratch / "prompt.txt"
    prompt_file.write_text(prompt, encoding="utf-8")
    say(f"  {count} documents, {len(prompt.encode()):,} bytes, about {options.tokens:,} tokens")

    say("== Prefill, with a SIGKILL in the middle")
    say(f"  daemon ready after {daemon.start():.1f} s")
    session, seconds, processor, evaluated, first_answer = prefill_with_a_kill(daemon, prompt_file, options.tokens)
    say(f"  {seconds:.1f} s for {evaluated:,} tokens: {evaluated / seconds:,.0f} tokens/s; {processor:.1f} s of processor time")

    say("== A question, before the second kill and after it")
    fork = daemon.ctl("fork", session, "--keep-seed").stdout.decode().strip()
    if not fork:
        fail("the session was not forked")
    say(f"  > {QUESTION}")
    before = ask(daemon, session, QUESTION)
    say(f"  state in memory: first token after {before['seconds']:.3f} s")
    daemon.kill()
    forget_pages(daemon.data)
    ready = daemon.start()
    after = ask(daemon, fork, QUESTION)
    say(f"  killed with SIGKILL; started again in {ready:.1f} s, page cache cold: first token after {after['seconds']:.3f} s")
    say(f"  {shown_resume(after)}")
    say(f"  answer (of a model that was trained on 8,192 tokens): {after['end'].get('answer', '')!r}")

    say("== Result")
    say(f"  prefill          {seconds:10.1f} s, {processor:.1f} s of processor time")
    say(f"  resume           {after['seconds']:10.3f} s to the first new token; with the daemon's start {ready + after['seconds']:.1f} s")
    say(f"  ratio            {seconds / after['seconds']:10,.0f}")
    say(f"  bytes on disk    {disk_bytes(daemon.data):10,}")
    same = before["sampled"] == after["sampled"]
    say(f"  same answer      {'yes' if same else 'NO'}, {len(after['sampled'])} tokens, before the kill and after it")
    if not same:
        fail(f"the answers differ: {before['sampled']} before the kill, {after['sampled']} after it")
    if after["resumed"]["prefilled_again"] != 0:
        fail("tokens were prefilled again")

    if options.once:
        say("== All of it once more, without a kill")
        daemon.stop()
        once = Daemon(options.model, scratch / "once", scratch / "log")
        try:
            once.start()
            turn = follow(once.events("run", "--json", *SETTINGS, "--file", prompt_file))
            answer = ask(once, turn["id"], QUESTION)
        finally:
            once.stop()
        if turn["sampled"] != first_answer or answer["sampled"] != after["sampled"]:
            fail("what came after the kills is not what comes without them")
        say(f"  same answers     yes, {len(turn['sampled'])} and {len(answer['sampled'])} tokens")


if __name__ == "__main__":
    main()
