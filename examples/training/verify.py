"""Checks the training code against the published model's reference values, and the engine against the training code. Needs no GPU.

python3 verify.py                  tests/golden/official-a: every layer, whole prompts, decoding step by step, the MTP block
python3 verify.py --v4 build/bin/v4    besides: the engine's logits of the shipped model against tests/golden/shipped"""
import argparse
import json
import os
import subprocess
import tempfile

import torch

import checkpoint
from decode import Decoder
from model import V4
from shape import Shape

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
GOLDEN = os.path.join(ROOT, "tests", "golden")


def tensors(*path):
    return {name: checkpoint.tensor(*t) for name, t in checkpoint.read(os.path.join(*path)).items()}


def difference(got, want):
    """Relative RMS error by row."""
    got, want = got.flatten(1), want.flatten(1)
    return (got - want).square().mean(1).sqrt() / want.square().mean(1).sqrt()


def padded(x, length):
    return torch.cat([x, x.new_zeros(length - x.shape[0], *x.shape[1:])])[None]


@torch.no_grad()
def check_reference():
    folder = os.path.join(GOLDEN, "official-a")
    with open(os.path.join(folder, "config.json")) as f:
        model = V4(Shape(json.load(f))).eval()
    checkpoint.load(os.path.join(folder, "model.safetensors"), model)
    want = tensors(folder, "expected.safetensors")
    ids = want["input_ids"].long()
    prompt = padded(ids[:200], 256)
    model.start(prompt)
    for i, layer in enumerate(model.layers):
        out, _ = layer(padded(want[f"hidden.{i}"], 256).to(torch.bfloat16), prompt, model.rotaries)
        error = difference(out[0, :200].float(), want[f"hidden.{i + 1}"])
        print(f"layer {i}: error median {error.median():.2e}, 99% {error.quantile(0.99):.2e}")
        assert error.median() < 0.003 and error.quantile(0.99) < 0.02
    logits = model.logits(model.streams(padded(ids, 384))[0])
    agree = [int(logits[n - 1].argmax() == want[f"prefill.{n}"].argmax()) for n in (1, 3, 4, 5, 8, 127, 128, 129, 200, 257, 300)]
    decoder = Decoder(model, 1, 384)
    decoder.prefill(ids[:190].tolist())
    for i in range(80):
        row = decoder.step(ids[190 + i][None], torch.tensor([190 + i]))[0]
        agree.append(int(row.argmax() == want["decode.190"][i].argmax()))
    print(f"whole prompts and decoding: argmax equal at {sum(agree)} of {len(agree)} positions")
    assert sum(agree) >= 0.93 * len(agree)
    draft = model.draft_logits(padded(want["hidden.4"][:199], 256).to(torch.bfloat16), padded(ids[1:200], 256))[198]
    error = (draft - want["mtp.199"]).square().mean().sqrt() / want["mtp.199"].std()
    print(f"MTP block: error {error:.2e}")
    assert error < 0.03


def check_engine(v4):
    want = tensors(GOLDEN, "shipped", "expected.safetensors")
    with tempfile.TemporaryDirectory() as folder:
        tokens, out = os.path.join(folder, "ids.json"), os.path.join(folder, "out.safetensors")
        with open(tokens, "w") as f:
            json.dump(want["input_ids"].tolist(), f)
        subprocess.run([v4, "logits", "--model", os.path.join(ROOT, "examples", "model"), "--tokens", tokens, "--out", out], check=True)
        got = tensors(out)["logits"][-len(want["logits"]):]
    error, agree = difference(got, want["logits"]), (got.argmax(1) == want["logits"].argmax(1)).float().mean()
    print(f"engine: argmax equal at {agree:.3f} of the last {len(got)} positions, error median {error.median():.3f}, 99% {error.quantile(0.99):.3f}")
    assert agree >= 0.97 and error.median() < 0.05


if __name__ == "__main__":
    a = argparse.ArgumentParser()
    a.add_argument("--v4", help="the engine's command")
    a = a.parse_args()
    check_reference()
    if a.v4:
        check_engine(a.v4)
