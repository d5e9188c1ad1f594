"""The element-wise parts of the model. In training they are compiled one by one (torch.compile fuses each into a few kernels);
in evaluation they run as they stand, so every rounding to BF16 is the one written here."""
import torch
import torch.nn.functional as F

import quant


def rms_norm(x, weight, eps):
    """BF16 in and out, F32 inside."""
    v = x.float()
    return (v * torch.rsqrt(v.square().mean(-1, keepdim=True) + eps) * weight.float()).to(x.dtype)


def mix_in(x, pre, weight, eps):
    """x [N, H, d], pre [N, H] -> RMSNorm(bf16(sum_i pre_i x_i)) [N, d]."""
    y = (pre[..., None] * x.float()).sum(1).to(x.dtype).float()
    return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps) * weight.float()).to(x.dtype)


def mix_out(x, out, post, comb):
    """x'_j = post_j * out + sum_i comb[i, j] x_i."""
    v = x.float()
    kept = comb[:, 0, :, None] * v[:, 0, None]
    for i in range(1, v.shape[1]):
        kept = kept + comb[:, i, :, None] * v[:, i, None]
    return (post[..., None] * out.float()[:, None] + kept).to(x.dtype)


def hc_factors(u, product, scale, base, streams, eps, hc_eps):
    """u [N, H d], product = fn . u [N, (2 + H) H] -> pre [N, H], post [N, H], the logits of comb [N, H, H]."""
    f = product * torch.rsqrt(u.float().square().mean(-1, keepdim=True) + eps)
    h = streams
    pre = torch.sigmoid(f[:, :h] * scale[0] + base[:h]) + hc_eps
    post = 2 * torch.sigmoid(f[:, h:2 * h] * scale[1] + base[h:2 * h])
    comb = (f[:, 2 * h:] * scale[2] + base[2 * h:]).view(-1, h, h)
    return pre, post, comb


def head_factors(u, product, scale, base, eps, hc_eps):
    f = product * torch.rsqrt(u.float().square().mean(-1, keepdim=True) + eps)
    return torch.sigmoid(f * scale + base) + hc_eps


def rope(x, cos, sin):
    """The last 2 * cos.shape[-1] channels, pairs (2i, 2i + 1), turned; cos and sin broadcast over x's other axes."""
    r = cos.shape[-1] * 2
    plain, turned = x[..., :-r], x[..., -r:].float()
    a, b = turned[..., 0::2], turned[..., 1::2]
    turned = torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
    return torch.cat([plain, turned.to(x.dtype)], -1)


def head_norm_rope(q, cos, sin, eps):
    """q [B, T, h, c]: each head divided by its RMS, in BF16 throughout, then RoPE."""
    s = (q * q).mean(-1, keepdim=True)
    q = q * torch.rsqrt(s + eps)
    return rope(q, cos, sin)


def norm_rope(x, weight, cos, sin, eps):
    return rope(rms_norm(x, weight, eps), cos, sin)


def pool(k, g):
    """k, g [..., slots, c] F32 -> sum over slots of softmax(g) * k, rounded to BF16."""
    return (torch.softmax(g, -2) * k).sum(-2).to(torch.bfloat16)


def attention_weights(near, far, near_mask, far_mask, sink, scale):
    """Scores against window keys [.., h, 2W] and entries [.., h, n] (or None), masks without the head axis, sink [h]: softmax over
    all of them and the sink, which has no value."""
    lowest = -1e30
    near = (near * scale).masked_fill(~near_mask[..., None, :], lowest)
    top = torch.maximum(near.amax(-1, keepdim=True), sink[:, None])
    if far is not None:
        far = (far * scale).masked_fill(~far_mask[..., None, :], lowest)
        top = torch.maximum(top, far.amax(-1, keepdim=True))
    top = top.detach()
    near = torch.exp(near - top)
    total = near.sum(-1, keepdim=True) + torch.exp(sink[:, None] - top)
    if far is None:
        return near / total, None
    far = torch.exp(far - top)
    total = total + far.sum(-1, keepdim=True)
    return near / total, far / total


def index_scores(dots, weights):
    """dots [N, heads, n] BF16, weights [N, heads] BF16 -> sum over heads of w * relu, each step in BF16."""
    return (torch.relu(dots) * weights[..., None]).sum(-2)


def index_loss(scores, mass, mask):
    """KL from the attention's own mass on the entries (summed over heads, normalised) to the indexer's softmax."""
    target = mass.sum(-2)
    total = target.sum(-1, keepdim=True)
    target = target / (total + 1e-6)
    logs = torch.log_softmax(scores.float().masked_fill(~mask, -1e30), -1).clamp(min=-60.0)
    gain = (target * ((target + 1e-9).log() - logs)).sum(-1)
    return (gain * (total[..., 0] > 0.02)).mean()


def swiglu(a, b, weights, limit):
    """a, b [N, E, inner] BF16, weights [N, E] F32 -> bf16(weight * silu(min(a, limit)) * clamp(b))."""
    v = F.silu(a.float().clamp(max=limit)) * b.float().clamp(-limit, limit)
    return (v * weights[..., None]).to(a.dtype)


def gate_scores(z):
    return torch.sqrt(F.softplus(z))


def cross_entropy(logits, targets):
    """[N, V] F32 -> [N]."""
    return torch.logsumexp(logits, -1) - logits.gather(-1, targets[:, None])[:, 0]


COMPILED = ["mix_in", "mix_out", "hc_factors", "head_norm_rope", "norm_rope", "rope", "pool", "attention_weights", "index_scores", "index_loss",
            "swiglu", "rms_norm", "cross_entropy"]
COMPILED_ROUNDING = ["round_fp8", "round_fp4", "round_weight_fp8"]
_plain = {name: globals()[name] for name in COMPILED}
_plain_rounding = {name: getattr(quant, name) for name in COMPILED_ROUNDING}


def compile_all():
    config = torch._dynamo.config
    config.recompile_limit = config.cache_size_limit = 256
    config.suppress_errors = True  # what does not compile runs as it stands
    for name, function in _plain.items():
        globals()[name] = torch.compile(function, dynamic=False)
    for name, function in _plain_rounding.items():
        setattr(quant, name, torch.compile(function, dynamic=False))


def compile_none():
    globals().update(_plain)
    vars(quant).update(_plain_rounding)
