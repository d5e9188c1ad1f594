"""Reference values of the exported checkpoint for the engine's tests: python3 reference.py --model DIR --out expected.safetensors

One conversation of training's kind: `input_ids` I32 [T], `logits` F32 [200, V] of its last 200 positions, `draft_logits` F32 [16, V] of the
MTP block at positions T - 17 .. T - 2 (streams there, with the token after)."""
import argparse
import os

import numpy as np
import torch

import chat_format as chat
import checkpoint
import mixture
from evaluate import load
from numerics import Mode


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--model", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "model"))
    a.add_argument("--out", required=True)
    a.add_argument("--seed", type=int, default=77)
    a = a.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, tokenizer = load(a.model, device)
    Mode.quantised = Mode.sparse = Mode.exact = True
    made = mixture.conversations(a.seed)
    c, _ = next(made)
    while len(c.segments) < 24:
        mixture.add_task(c, 0.3)
    made.close()
    ids = tokenizer.encode(chat.prefix() + "".join(t for t, _ in c.segments), add_special_tokens=False).ids
    t = len(ids)
    padded = torch.zeros(1, -(-t // 128) * 128, dtype=torch.long, device=device)
    padded[0, :t] = torch.tensor(ids, device=device)
    with torch.no_grad():
        x, _ = model.streams(padded)
        logits = model.logits(x)[t - 200:t]
        draft = model.draft_logits(x, torch.roll(padded, -1, 1))[t - 17:t - 1]
    checkpoint.write(a.out, {"input_ids": ("I32", np.array(ids, np.int32)), "logits": ("F32", logits.float().cpu().numpy()), "draft_logits": ("F32", draft.float().cpu().numpy())})
    after = padded[0, t - 199:t]
    print(f"{t} tokens, argmax is the next token at {(logits[:-1].argmax(-1) == after).float().mean().item():.3f} of the last 199 positions")


if __name__ == "__main__":
    main()
