"""Trains the shipped model on one GPU: python3 train.py --minutes 8 --out DIR [--tokenizer FILE].

Phases, by share of the time: everything in BF16 and all compressed entries visible (the indexer learns from the full attention);
then quantised as in the file; then the indexer's top-k choice and every second batch long."""
import argparse
import json
import os
import time

import torch

import checkpoint
import ops
import tokenizer as tokenizer_file
import warm_start
from data import Feed
from model import V4
from numerics import Mode
from optimiser import Optimiser
from shape import CONFIG, Shape


def arguments():
    a = argparse.ArgumentParser()
    a.add_argument("--minutes", type=float, default=8)
    a.add_argument("--deadline", type=float, default=1e9, help="seconds from the start by which training ends, compilation included")
    a.add_argument("--out", required=True)
    a.add_argument("--tokenizer", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "model", "tokenizer.json"))
    a.add_argument("--rows", type=int, default=32)
    a.add_argument("--length", type=int, default=2048)
    a.add_argument("--long-rows", type=int, default=8)
    a.add_argument("--long-length", type=int, default=8192)
    a.add_argument("--workers", type=int, default=14)
    a.add_argument("--seed", type=int, default=1)
    a.add_argument("--quantised-from", type=float, default=0.3)
    a.add_argument("--sparse-from", type=float, default=0.5)
    a.add_argument("--long-from", type=float, default=0.3)
    a.add_argument("--decay-from", type=float, default=0.55)
    a.add_argument("--start", help="folder of a checkpoint to go on from; its tokenizer may be another")
    a.add_argument("--plain", action="store_true", help="without torch.compile")
    return a.parse_args()


def losses(model, ids, marked, with_draft):
    """ids, marked (weights) [B, T + 1]. The agent's tokens count fully, the rest a little: it is only read, but reading it is what copying needs."""
    inputs, targets, weight = ids[:, :-1], ids[:, 1:], marked[:, 1:].float()
    x, index_loss = model.streams(inputs)
    logits = model.logits(x)
    each = ops.cross_entropy(logits, targets.flatten()).view_as(weight)
    main = (each * weight).sum() / weight.sum()
    other = (each * (weight == 0)).mean()
    total = main + 0.05 * other + index_loss
    draft = torch.zeros_like(main)
    if with_draft:
        # The block wants the streams at t with token t + 1, and gives token t + 2; the last column has no such token.
        each = ops.cross_entropy(model.draft_logits(x, targets), torch.roll(targets, -1, 1).flatten()).view_as(weight)
        w = torch.roll(weight, -1, 1).clamp(min=0.05)
        w[:, -1] = 0
        draft = (each * w).sum() / w.sum()
        total = total + draft
    right = ((logits.view(*targets.shape, -1).argmax(-1) == targets) * weight).sum() / weight.sum()
    return total, {"main": main, "other": other, "index": index_loss, "draft": draft, "right": right}


def balance(model, rate=0.001):
    for block in list(model.layers) + [model.mtp.block]:
        f = block.ffn
        if not f.hashed and f.load is not None:
            f.bias += rate * torch.sign(f.load.mean() - f.load)
            f.load = None


def warm_up(model, kinds, forms):
    """Compiles every form of the step before the clock starts."""
    for kind, quantised, sparse in forms:
        t = time.time()
        Mode.quantised, Mode.sparse = quantised, sparse
        rows, length = kinds[kind]
        ids = torch.randint(0, model.shape.vocab, (rows, length + 1), device="cuda")
        total, _ = losses(model, ids, torch.ones_like(ids, dtype=torch.int8), quantised)
        total.backward()
        model.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        print(f"form {kind} {quantised} {sparse} compiled in {time.time() - t:.0f} s, memory {torch.cuda.max_memory_allocated() / 2 ** 30:.0f} GiB", flush=True)


def train(a):
    start = time.time()
    os.makedirs(a.out, exist_ok=True)
    if not os.path.exists(a.tokenizer):
        tokenizer_file.build(a.tokenizer)
    kinds = [(a.rows, a.length), (a.long_rows, a.long_length)]
    feed = Feed(a.tokenizer, kinds, a.workers, seed=1000 * a.seed)
    torch.manual_seed(a.seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    model = V4(Shape()).cuda().train()
    if a.start:
        warm_start.load(model, a.start, a.tokenizer)
    optimiser = Optimiser(model)
    if not a.plain:
        ops.compile_all()
    Mode.exact = False
    forms = [(0, True, True), (1, True, True)]
    if a.quantised_from > 0:
        forms = [(0, False, False), (0, True, False), (1, True, False)] + forms
    warm_up(model, kinds, forms)
    print(f"parameters {sum(p.numel() for p in model.parameters()) / 1e6:.2f}M, ready after {time.time() - start:.0f} s", flush=True)
    step, tokens, began, waited = 0, 0, None, 0.0
    while True:
        share = 0 if began is None else (time.time() - began) / min(60 * a.minutes, a.deadline - (began - start))
        if share >= 1:
            break
        Mode.quantised, Mode.sparse = share >= a.quantised_from, share >= a.sparse_from
        kind = int(share >= a.long_from and step % 2)
        t = time.time()
        ids, marked = (torch.from_numpy(x).cuda(non_blocking=True) for x in feed.take(kind))
        waited += time.time() - t
        total, parts = losses(model, ids.long(), marked, share >= a.quantised_from)
        total.backward()
        rate = min(1, (step + 1) / 100) * (1 if share < a.decay_from else max(0.01, (1 - share) / (1 - a.decay_from)))
        optimiser.step(rate)
        balance(model)
        step, tokens = step + 1, tokens + ids.shape[0] * (ids.shape[1] - 1)
        if step == 3:
            torch.cuda.synchronize()
            began = time.time()
            print(f"first steps done after {began - start:.0f} s", flush=True)
        if step % 100 == 0 or step < 4:
            shown = " ".join(f"{k} {float(v.detach()):.4f}" for k, v in parts.items())
            print(f"step {step} {shown} kind {kind} tokens {tokens / 1e6:.1f}M waited {waited:.0f} memory {torch.cuda.max_memory_allocated() / 2 ** 30:.0f} t {time.time() - start:.0f}", flush=True)
    feed.close()
    ops.compile_none()
    checkpoint.save(os.path.join(a.out, "model.safetensors"), model)
    with open(os.path.join(a.out, "config.json"), "w") as f:
        json.dump(CONFIG, f, indent=1)
        f.write("\n")
    print(f"trained: {step} steps, {tokens / 1e6:.1f}M tokens, {time.time() - start:.0f} s", flush=True)


if __name__ == "__main__":
    train(arguments())
