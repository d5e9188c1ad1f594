"""Attention over a sliding window and over compressed entries: all of them (HCA) or those an indexer chooses (CSA)."""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

import ops
import quant
from numerics import BF, Mode, float_product, fp8_input, fp8_weight, kv_round, matrix, ones
from shape import Shape


class Rotary:
    """cos and sin [positions, r / 2] of one rotary base."""

    def __init__(self, shape: Shape, compressed, device, positions=16384):
        r, y = shape.r, shape.yarn
        base = shape.compress_theta if compressed else shape.theta
        freq = base ** (-torch.arange(0, r, 2, dtype=torch.float64) / r)
        if compressed:
            def dim(n):
                return r * math.log(y["original_max_position_embeddings"] / (2 * math.pi * n)) / (2 * math.log(base))
            low, high = max(math.floor(dim(y["beta_fast"])), 0), min(math.ceil(dim(y["beta_slow"])), r - 1)
            high = high + 0.001 if low == high else high
            ramp = ((torch.arange(r // 2, dtype=torch.float64) - low) / (high - low)).clamp(0, 1)
            freq = freq * (1 - ramp) + freq / y["factor"] * ramp
        angles = torch.outer(torch.arange(positions, dtype=torch.float64), freq)
        self.cos, self.sin = angles.cos().float().to(device), angles.sin().float().to(device)


class Compressor(nn.Module):
    def __init__(self, shape, m, c):
        super().__init__()
        k = 2 if m == 4 else 1
        self.m, self.c, self.eps = m, c, shape.eps
        self.wkv, self.wgate = matrix(k * c, shape.d), nn.Parameter(torch.randn(k * c, shape.d) * 0.01)
        self.ape, self.norm = nn.Parameter(torch.zeros(m, k * c)), ones(c)

    def rows(self, y):
        """k and g rows of tokens, F32 [.., k c], g without its ape."""
        return float_product(y, self.wkv), float_product(y, self.wgate)

    def entries(self, k, g, rotary):
        """Rows [B, n m, k c] -> entries before rounding, BF16 [1, B n, c]: flat, so that lengths do not matter to compiled code."""
        pooled = self.pooled(k, g)
        end = k.shape[1]
        cos, sin = (v[:end:self.m].repeat(k.shape[0], 1) for v in (rotary.cos, rotary.sin))
        return ops.norm_rope(pooled[None], self.norm, cos, sin, self.eps)

    def pooled(self, k, g):
        """[B, n m, k c] -> BF16 [B n, c]."""
        m, c = self.m, self.c
        k, g = k.unflatten(1, (-1, m)), g.unflatten(1, (-1, m)) + self.ape
        if m == 4:
            k = torch.cat([F.pad(k[:, :-1, :, :c], (0, 0, 0, 0, 1, 0)), k[..., c:]], 2)
            g = torch.cat([F.pad(g[:, :-1, :, :c], (0, 0, 0, 0, 1, 0), value=-1e30), g[..., c:]], 2)
        return ops.pool(k.flatten(0, 1), g.flatten(0, 1))


class Indexer(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.wq_b, self.weights_proj = matrix(shape.index_heads * shape.index_dim, shape.q_rank), matrix(shape.index_heads, shape.d)
        self.compressor = Compressor(shape, 4, shape.index_dim)
        self.register_buffer("turn", quant.hadamard(shape.index_dim, "cpu"), persistent=False)

    def rounded(self, x):
        """BF16 after RoPE -> Hadamard -> FP4."""
        x = F.linear(x.float(), self.turn).to(BF)
        return quant.through(x, quant.round_fp4) if Mode.quantised else x

    def queries(self, qr, rotary_rows):
        s = self.shape
        q = F.linear(fp8_input(qr), fp8_weight(self.wq_b)).unflatten(-1, (s.index_heads, s.index_dim))
        return self.rounded(ops.rope(q, *rotary_rows))

    def weights(self, y):
        return F.linear(y, self.weights_proj.to(BF)) * (self.shape.index_dim ** -0.5 * self.shape.index_heads ** -0.5)


class Attention(nn.Module):
    def __init__(self, shape, m):
        super().__init__()
        s = shape
        self.shape, self.m = s, m
        self.wq_a, self.q_norm, self.wq_b = matrix(s.q_rank, s.d), ones(s.q_rank), matrix(s.heads * s.c, s.q_rank)
        self.wkv, self.kv_norm, self.sink = matrix(s.c, s.d), ones(s.c), nn.Parameter(torch.zeros(s.heads))
        self.wo_a, self.wo_b = matrix(s.groups, s.o_rank, s.heads * s.c // s.groups), matrix(s.d, s.groups * s.o_rank, gain=0.5)
        self.compressor = Compressor(s, m, s.c) if m else None
        self.indexer = Indexer(s) if m == 4 else None

    def project(self, y, cos, sin):
        """y [1, N, d] -> q [1, N, h, c] and the window entry [1, N, c], both after RoPE, and q's low-rank form."""
        s = self.shape
        yq = fp8_input(y)
        qr = ops.rms_norm(F.linear(yq, fp8_weight(self.wq_a)), self.q_norm, s.eps)
        q = F.linear(fp8_input(qr), fp8_weight(self.wq_b)).unflatten(-1, (s.heads, s.c))
        q = ops.head_norm_rope(q, cos[:, None], sin[:, None], s.eps)
        kv = ops.norm_rope(F.linear(yq, fp8_weight(self.wkv)), self.kv_norm, cos, sin, s.eps)
        return q, kv_round(kv, s.r), qr

    def output(self, o, cos, sin):
        """o [1, N, h, c] F32 -> [1, N, d]."""
        s = self.shape
        o = ops.rope(o.to(BF), cos[:, None], -sin[:, None])
        o = o.flatten(2).unflatten(-1, (s.groups, -1))
        o = torch.einsum("btgd,grd->btgr", o, fp8_weight(self.wo_a)).flatten(2)
        return F.linear(fp8_input(o), fp8_weight(self.wo_b))

    def forward(self, y, rotary, keep=None):
        """y [B, T, d]. keep: a dict that receives what decoding goes on from. Token-wise parts see [1, B T, ..]: one shape for every T."""
        s, (b, t, d) = self.shape, y.shape
        cos, sin = rotary.cos[:t].repeat(b, 1), rotary.sin[:t].repeat(b, 1)
        flat = y.view(1, b * t, d)
        q, kv, qr = self.project(flat, cos, sin)
        w, n_chunks = s.window, t // s.window
        chunks = kv.view(b, n_chunks, w, s.c)
        keys = torch.cat([F.pad(chunks[:, :-1], (0, 0, 0, 0, 1, 0)), chunks], 2).float()      # [B, n, 2W, c]
        qf = q.float()
        near = torch.matmul(qf.view(b, n_chunks, w * s.heads, s.c), keys.transpose(2, 3)).view(b * t, s.heads, 2 * w)
        i, j = torch.arange(t, device=y.device)[:, None], torch.arange(2 * w, device=y.device)[None]
        near_mask = ((j > i % w) & (j <= i % w + w) & ((i >= w) | (j >= w))).repeat(b, 1)
        far = far_mask = entries = None
        loss = y.new_zeros((), dtype=torch.float32)
        if keep is not None:
            keep["kv"] = kv.view(b, t, s.c)
        if self.m:
            k_rows, g_rows = self.compressor.rows(y)
            entries = kv_round(self.compressor.entries(k_rows, g_rows, rotary), s.r).view(b, t // self.m, s.c)
            n = entries.shape[1]
            seen = torch.arange(n, device=y.device)[None] < ((i + 1) // self.m)
            far_mask = seen.repeat(b, 1)
            far = torch.matmul(qf.view(b, t * s.heads, s.c), entries.float().transpose(1, 2)).view(b * t, s.heads, n)
            if keep is not None:
                keep["rows"], keep["entries"] = (k_rows, g_rows), entries
            if self.m == 4:
                scores = self.index(flat.detach(), qr.detach(), cos, sin, b, rotary, keep)
                if Mode.sparse:
                    far_mask = far_mask & self.select(scores.detach(), far_mask)
        near_p, far_p = ops.attention_weights(near, far, near_mask, far_mask, self.sink, s.c ** -0.5)
        if self.m == 4 and self.training:
            loss = ops.index_loss(scores, far_p.detach(), far_mask)
        o = torch.matmul(near_p.view(b, n_chunks, w * s.heads, 2 * w), keys).view(1, b * t, s.heads, s.c)
        if self.m:
            o = o + torch.matmul(far_p.view(b, t * s.heads, -1), entries.float()).view(1, b * t, s.heads, s.c)
        return self.output(o, cos, sin).view(b, t, d), loss

    def index(self, y, qr, cos, sin, b, rotary, keep):
        """The indexer's scores [B T, n]; y and qr are [1, B T, ..]."""
        x = self.indexer
        q = x.queries(qr, (cos[:, None], sin[:, None]))
        rows = [v.view(b, -1, v.shape[-1]) for v in x.compressor.rows(y)]
        keys = x.rounded(x.compressor.entries(*rows, rotary))
        keys = keys.view(b, -1, keys.shape[-1])
        if keep is not None:
            keep["index_keys"], keep["index_rows"] = keys, rows
        dots = torch.matmul(q.view(b, -1, keys.shape[-1]), keys.transpose(1, 2)).view(q.shape[1], q.shape[2], -1)
        return ops.index_scores(dots, x.weights(y)[0])

    def select(self, scores, seen):
        """The top-k entries by score; in exact mode ties go to the lower index."""
        k = self.shape.top_k
        if scores.shape[-1] <= k:
            return seen
        scores = scores.float().masked_fill(~seen, -1e30)
        if not Mode.exact:
            return scores >= scores.topk(k, -1, sorted=False).values.amin(-1, keepdim=True)
        order = scores.sort(dim=-1, descending=True, stable=True).indices[..., :k]
        return torch.zeros_like(seen).scatter(-1, order, True)
