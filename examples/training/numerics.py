"""How numbers are kept: what is quantised now, and weights and activations as the engine would hold them."""
import torch
import torch.nn as nn
import torch.nn.functional as F

import quant

BF = torch.bfloat16


class Mode:
    """What the forward pass does now: rounding as in the file (quantised), top-k or all entries (sparse), auxiliary losses."""
    quantised = True
    sparse = True
    exact = True  # experts one by one, ties to the lower index: for reference values


def matrix(*shape, gain=1.0):
    return nn.Parameter(torch.randn(*shape) * gain * shape[-1] ** -0.5)


def ones(n):
    return nn.Parameter(torch.ones(n))


def fp8_weight(w):
    if not Mode.quantised:
        return w.to(BF)
    flat = w.reshape(-1, w.shape[-1])
    return quant.through(flat, quant.round_weight_fp8).to(BF).view(w.shape)


def fp4_weight(w):
    return (quant.through(w, quant.round_fp4) if Mode.quantised else w).to(BF)


def fp8_input(x):
    return quant.through(x, quant.round_fp8, 128) if Mode.quantised else x


def kv_round(x, r):
    """A key-value entry: plain channels E4M3 per 64, rotary ones as they are."""
    if not Mode.quantised:
        return x
    return torch.cat([quant.through(x[..., :-r], quant.round_fp8, 64), x[..., -r:]], -1)


def float_product(x, w):
    """x BF16, w BF16 values -> F32 [.., rows of w]."""
    return F.linear(x.float(), w.to(BF).float())
