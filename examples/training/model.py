"""DeepSeek-V4's forward pass over whole sequences, for training, export checks and reference values.

Streams are BF16 and every rounding point of the published low-precision rules is kept; products of BF16 values that the rules
want in F32 are made from F32 copies (exact in TF32, whose products of BF16 inputs are exact). Sequences are multiples of the window."""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

import ops
from attention import Attention, Rotary
from numerics import BF, Mode, float_product, fp4_weight, fp8_input, fp8_weight, matrix, ones
from shape import Shape
from sinkhorn import sinkhorn


class HyperConnection(nn.Module):
    def __init__(self, shape):
        super().__init__()
        h = shape.streams
        self.shape = shape
        self.fn, self.scale = nn.Parameter(torch.randn((2 + h) * h, h * shape.d) * 0.001), nn.Parameter(torch.ones(3))
        base = torch.zeros((2 + h) * h)
        base[:h] = -math.log(h - 1)  # pre = 1 / H
        base[2 * h:] = (torch.eye(h) * 4).flatten()
        self.base = nn.Parameter(base)

    def forward(self, x):
        """x [N, H, d] -> pre, post, comb."""
        s, u = self.shape, x.flatten(1)
        pre, post, comb = ops.hc_factors(u, F.linear(u.float(), self.fn), self.scale, self.base, s.streams, s.eps, s.hc_eps)
        return pre, post, sinkhorn(comb, s.hc_eps, s.sinkhorn)


class Experts(nn.Module):
    def __init__(self, shape, hashed):
        super().__init__()
        s = shape
        self.shape = s
        self.gate = matrix(s.experts, s.d)
        self.w1, self.w3, self.w2 = matrix(s.experts, s.inner, s.d), matrix(s.experts, s.inner, s.d), matrix(s.experts, s.d, s.inner, gain=0.5)
        self.s1, self.s3, self.s2 = matrix(s.inner, s.d), matrix(s.inner, s.d), matrix(s.d, s.inner, gain=0.5)
        if hashed:
            table = torch.stack([torch.randperm(s.experts)[:s.chosen] for _ in range(s.vocab)])
            self.register_buffer("tid2eid", table)
        else:
            self.register_buffer("bias", torch.zeros(s.experts))
        self.hashed, self.load = hashed, None

    def forward(self, y, ids):
        """y [N, d], ids [N] -> [N, d]."""
        s = self.shape
        scores = ops.gate_scores(float_product(y, self.gate))
        if self.hashed:
            chosen = self.tid2eid[ids]
        elif Mode.exact:
            chosen = (scores + self.bias).sort(dim=-1, descending=True, stable=True).indices[:, :s.chosen]
        else:
            chosen = (scores + self.bias).topk(s.chosen, -1).indices
        weights = scores.gather(1, chosen)
        weights = weights / weights.sum(-1, keepdim=True) * s.routed_scale
        weights = torch.zeros_like(scores).scatter(1, chosen, weights)
        if self.training and not self.hashed:
            self.load = (weights > 0).float().sum(0)
        weights = torch.cat([weights, torch.ones_like(weights[:, :1])], 1)  # the shared expert comes last
        yq = fp8_input(y)
        w1 = torch.cat([fp4_weight(self.w1).flatten(0, 1), fp8_weight(self.s1)])
        w3 = torch.cat([fp4_weight(self.w3).flatten(0, 1), fp8_weight(self.s3)])
        a, b = (F.linear(yq, w).unflatten(-1, (s.experts + 1, s.inner)) for w in (w1, w3))
        v = fp8_input(ops.swiglu(a, b, weights, s.limit))
        w2 = torch.cat([fp4_weight(self.w2), fp8_weight(self.s2)[None]])
        if Mode.exact:  # every expert's product is rounded, then the sum once
            out = sum(F.linear(v[:, e], w2[e]).float() for e in range(s.experts + 1))
            return out.to(BF)
        return F.linear(v.flatten(1), w2.transpose(0, 1).flatten(1))


class Block(nn.Module):
    def __init__(self, shape, m, hashed):
        super().__init__()
        self.shape, self.m = shape, m
        self.hc_attn, self.hc_ffn = HyperConnection(shape), HyperConnection(shape)
        self.attn_norm, self.ffn_norm = ones(shape.d), ones(shape.d)
        self.attn, self.ffn = Attention(shape, m), Experts(shape, hashed)

    def forward(self, x, ids, rotaries, keep=None):
        """x [B, T, H, d] -> the same, and the indexer's loss."""
        b, t = ids.shape
        flat = x.flatten(0, 1)
        pre, post, comb = self.hc_attn(flat)
        y = ops.mix_in(flat, pre, self.attn_norm, self.shape.eps)
        out, loss = self.attn(y.view(b, t, -1), rotaries[self.m > 0], keep)
        flat = ops.mix_out(flat, out.flatten(0, 1), post, comb)
        return self.feed_forward(flat, ids.flatten()).view_as(x), loss

    def feed_forward(self, flat, ids):
        pre, post, comb = self.hc_ffn(flat)
        y = ops.mix_in(flat, pre, self.ffn_norm, self.shape.eps)
        return ops.mix_out(flat, self.ffn(y, ids), post, comb)


class HeadMix(nn.Module):
    """The last mix of the streams and the final norm."""

    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.fn, self.scale = nn.Parameter(torch.randn(shape.streams, shape.streams * shape.d) * 0.001), nn.Parameter(torch.ones(1))
        self.base, self.norm = nn.Parameter(torch.full((shape.streams,), -math.log(shape.streams - 1))), ones(shape.d)

    def forward(self, x):
        s, u = self.shape, x.flatten(1)
        pre = ops.head_factors(u, F.linear(u.float(), self.fn), self.scale, self.base, s.eps, s.hc_eps)
        return ops.mix_in(x, pre, self.norm, s.eps)


class NextToken(nn.Module):
    """The MTP block: from the streams at t and token t + 1, the token after."""

    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.e_proj, self.h_proj, self.enorm, self.hnorm = matrix(shape.d, shape.d), matrix(shape.d, shape.d), ones(shape.d), ones(shape.d)
        self.block, self.out = Block(shape, 0, False), HeadMix(shape)

    def forward(self, x, next_ids, embedding, rotaries):
        s = self.shape
        e = F.linear(fp8_input(ops.rms_norm(embedding, self.enorm, s.eps)), fp8_weight(self.e_proj))
        h = F.linear(fp8_input(ops.rms_norm(x, self.hnorm, s.eps)), fp8_weight(self.h_proj))
        x, _ = self.block(e[:, :, None] + h, next_ids, rotaries)
        return self.out(x.flatten(0, 1))


class V4(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.embed, self.head = nn.Parameter(torch.randn(shape.vocab, shape.d)), nn.Parameter(torch.randn(shape.vocab, shape.d) * 0.02)
        self.layers = nn.ModuleList([Block(shape, m, i < shape.hash_layers) for i, m in enumerate(shape.ratios[:shape.layers])])
        self.out, self.mtp = HeadMix(shape), NextToken(shape)
        self.rotaries = None

    def start(self, ids):
        """Embeddings copied to every stream, [B, T, H, d]."""
        if self.rotaries is None:
            self.rotaries = [Rotary(self.shape, c, ids.device) for c in (False, True)]
        return F.embedding(ids, self.embed).to(BF)[:, :, None].expand(-1, -1, self.shape.streams, -1).contiguous()

    def streams(self, ids, keep=None):
        x, loss = self.start(ids), 0.0
        for i, layer in enumerate(self.layers):
            kept = None if keep is None else keep.setdefault(i, {})
            x, one = layer(x, ids, self.rotaries, kept)
            loss = loss + one
        return x, loss

    def logits(self, x):
        """Streams [B, T, H, d] -> F32 [B T, V]."""
        return float_product(self.out(x.flatten(0, 1)), self.head)

    def draft_logits(self, x, next_ids, detached=True):
        """Streams at t and tokens t + 1 -> logits of tokens t + 2. Trained on its own: nothing flows back into the model."""
        embedding, head = F.embedding(next_ids, self.embed).to(BF), self.head
        if detached:
            x, embedding, head = x.detach(), embedding.detach(), head.detach()
        return float_product(self.mtp(x, next_ids, embedding, self.rotaries), head)
