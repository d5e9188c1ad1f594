"""FP8 and FP4 as the engine stores them, and straight-through gradients for training with them.

Scales are powers of two. Every value returned is exact in BF16: code times scale has at most 4 bits of mantissa."""
import torch

HAVE_FP8 = hasattr(torch, "float8_e4m3fn")


def power_of_two_above(x):
    """2^ceil(log2 x), exactly, for positive normal x."""
    bits = x.contiguous().view(torch.int32)
    exponent = (bits >> 23) + ((bits & 0x7FFFFF) != 0).to(torch.int32)
    return (exponent << 23).view(torch.float32)


def to_e4m3(v):
    """F32 in [-448, 448] to the nearest E4M3 value, ties to even, as F32."""
    if HAVE_FP8:
        return v.to(torch.float8_e4m3fn).float()
    _, e = torch.frexp(v)
    step = torch.exp2((e - 1).clamp(min=-6).float() - 3)
    return torch.round(v / step) * step


def to_e2m1(v):
    """F32 in [-6, 6] to the nearest E2M1 value, ties to the even code, as F32."""
    a = v.abs()
    q = torch.where(a < 2, (a * 2).round() * 0.5, torch.where(a < 4, a.round(), (a * 0.5).round() * 2)).clamp(max=6.0)
    return torch.copysign(q, v)


def fp8_parts(v, block, floor=1e-4):
    """v [..., n] in blocks of `block` along the last axis -> codes' values [..., n / block, block] and scales [..., n / block, 1]."""
    v = v.float().unflatten(-1, (-1, block)) if hasattr(v, "unflatten") else v.float().view(*v.shape[:-1], -1, block)
    scale = power_of_two_above(v.abs().amax(-1, keepdim=True).clamp(min=floor) / 448.0)
    return to_e4m3(v / scale), scale


def fp4_parts(v, block=32, floor=6 * 2.0 ** -126):
    v = v.float().unflatten(-1, (-1, block))
    scale = power_of_two_above(v.abs().amax(-1, keepdim=True).clamp(min=floor) / 6.0)
    return to_e2m1(v / scale), scale


def round_fp8(v, block):
    q, scale = fp8_parts(v, block)
    return (q * scale).flatten(-2).to(v.dtype)


def round_fp4(v):
    q, scale = fp4_parts(v)
    return (q * scale).flatten(-2).to(v.dtype)


def block_scales(w):
    """Scales of a weight's 128x128 blocks, [rows / 128, 1, columns / 128, 1] for the view [rows / 128, 128, columns / 128, 128]."""
    v = w.float().view(w.shape[0] // 128, 128, w.shape[1] // 128, 128)
    return v, power_of_two_above(v.abs().amax((1, 3), keepdim=True).clamp(min=1e-8) / 448.0)


def round_weight_fp8(w):
    """[rows, columns], multiples of 128."""
    v, scale = block_scales(w)
    return (to_e4m3(v / scale) * scale).view_as(w)


class _Through(torch.autograd.Function):
    """Forward the rounded value, backward as if it were not rounded."""

    @staticmethod
    def forward(ctx, x, function, *arguments):
        ctx.extra = 1 + len(arguments)
        return function(x, *arguments)

    @staticmethod
    def backward(ctx, grad):
        return (grad,) + (None,) * ctx.extra


def through(x, function, *arguments):
    return _Through.apply(x, function, *arguments)


def hadamard(n, device):
    """Sylvester's matrix / sqrt(n)."""
    h = torch.ones(1, 1, device=device)
    while h.shape[0] < n:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)], 0)
    return h * n ** -0.5
