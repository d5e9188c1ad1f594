"""Runs held-out tasks (tests/agent_tasks) with an exported checkpoint, greedy, calling real tools, all of them side by side on one GPU.

python3 evaluate.py --model DIR --seed 7 --count 200 [--out FILE]: prints counts per family; FILE gets what went wrong."""
import argparse
import collections
import json
import os
import sys
import time

import torch

import chat_format as chat
import checkpoint
from decode import Decoder, Stepper
from model import V4
from numerics import Mode
from shape import Shape
from workspace import Workspace

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "tests", "agent_tasks"))
import check as judge  # noqa: E402
import generate  # noqa: E402


class Run:
    """One task under way: tokens still to be read, or being answered."""

    def __init__(self, task, tokenizer, limits):
        self.task, self.tokenizer, self.max_calls, self.max_tokens = task, tokenizer, *limits
        self.ws = Workspace()
        for path, content in task["setup"].items():
            self.ws.put(path, content)
        self.turn, self.calls, self.written, self.answer, self.done, self.log = 0, 0, [], "", False, []
        self.pending = self.encode(chat.user_turn(task["turns"][0]))
        self.sampled = 0

    def encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def next(self, sampled):
        """The token to feed now; `sampled` is what the model chose after the last one."""
        if self.pending:
            return self.pending.pop(0)
        self.written.append(sampled)
        self.sampled += 1
        if sampled == 1 or self.sampled > self.max_tokens:
            self.finish_message()
        return sampled

    def finish_message(self):
        text = self.tokenizer.decode(self.written[:-1], skip_special_tokens=False)
        self.written = []
        self.log.append(text)
        parsed = chat.parse_calls(text)
        if self.sampled > self.max_tokens or parsed is None:
            self.answer, self.done = "", True
            return
        content, calls = parsed
        if calls and self.calls < self.max_calls:
            self.calls += len(calls)
            results = [self.ws.call(n, a) for n, a in calls]
            self.log += results
            self.pending = self.encode(chat.result_turn(results))
            return
        self.answer, self.turn, self.sampled, self.calls = content, self.turn + 1, 0, 0
        if self.turn == len(self.task["turns"]):
            self.done = True
        else:
            self.log.append("> " + self.task["turns"][self.turn][:200])
            self.pending = self.encode(chat.user_turn(self.task["turns"][self.turn]))

    def faults(self):
        return judge.faults(self.task["check"], self.answer, self.ws.get)


def run_tasks(model, tokenizer, tasks, length=8192, limits=(8, 400), budget_s=1e9):
    Mode.quantised = Mode.sparse = Mode.exact = True
    prefix = tokenizer.encode(chat.prefix(), add_special_tokens=False).ids
    runs = [Run(t, tokenizer, limits) for t in tasks]
    decoder = Decoder(model, len(runs), length)
    decoder.prefill(prefix)
    step, start = Stepper(decoder), time.time()
    device = decoder.at.device
    pos = [len(prefix)] * len(runs)
    sampled = [0] * len(runs)
    while not all(r.done for r in runs) and time.time() - start < budget_s:
        ids = [0 if r.done else r.next(s) for r, s in zip(runs, sampled)]
        logits = step(torch.tensor(ids, device=device), torch.tensor(pos, device=device))
        sampled = logits.argmax(-1).tolist()
        for i, r in enumerate(runs):
            r.done = r.done or pos[i] + 2 >= length
            pos[i] += not r.done
    return runs, pos


def report(runs, pos, out=None):
    right, total, lines = collections.Counter(), collections.Counter(), []
    for r, p in zip(runs, pos):
        wrong = r.faults() if r.done else ["not finished"]
        total[r.task["family"]] += 1
        right[r.task["family"]] += not wrong
        if wrong:
            lines.append(json.dumps({"task": r.task["id"], "family": r.task["family"], "wrong": wrong, "tokens": p, "turns": [t[:300] for t in r.task["turns"]], "answer": r.answer, "log": r.log[-8:]}, ensure_ascii=False))
        r.ws.close()
    for family in sorted(total):
        print(f"{family:18} {right[family]:4} of {total[family]}")
    print(f"{sum(right.values())} of {sum(total.values())} tasks right (longest {max(pos)} tokens)", flush=True)
    if out:
        with open(out, "w", encoding="utf-8") as f:
            f.write("\n".join(lines) + "\n")
    return sum(right.values()) / sum(total.values())


def load(folder, device="cuda"):
    from tokenizers import Tokenizer
    with open(os.path.join(folder, "config.json")) as f:
        model = V4(Shape(json.load(f)))
    checkpoint.load(os.path.join(folder, "model.safetensors"), model)
    torch.backends.cuda.matmul.allow_tf32 = False
    return model.to(device).eval(), Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--model", default=os.path.join(HERE, "..", "model"))
    a.add_argument("--seed", type=int, default=7)
    a.add_argument("--count", type=int, default=200)
    a.add_argument("--budget", type=float, default=1e9, help="seconds")
    a.add_argument("--out")
    a = a.parse_args()
    model, tokenizer = load(a.model)
    start = time.time()
    runs, pos = [], []
    tasks = generate.tasks(a.seed, a.count)
    for wanted, length in ((False, 2560), (True, 8192)):  # long conversations apart: every row costs as much as the longest
        group = [t for t in tasks if (sum(map(len, t["turns"])) > 2000) == wanted]
        if group:
            more, at = run_tasks(model, tokenizer, group, length, budget_s=a.budget)
            runs, pos = runs + more, pos + at
            print(f"{len(group)} tasks, {time.time() - start:.0f} s", flush=True)
    report(runs, pos, a.out)
    print(f"{time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
