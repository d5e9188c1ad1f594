"""Token-by-token decoding of many rows at once with the quantised model, every row at its own position. What prefill (the whole-sequence
pass) leaves in `keep` is where it goes on from, so it also shows that both ways of computing agree."""
import torch

import ops
from numerics import float_product, kv_round


class Decoder:
    def __init__(self, model, rows, length):
        """Buffers for `rows` timelines of at most `length` tokens (a multiple of 128)."""
        self.model, self.rows, self.length = model, rows, length
        self.at = torch.arange(rows, device="cuda" if next(model.parameters()).is_cuda else "cpu")
        self.state = {}

    @torch.no_grad()
    def prefill(self, ids):
        """The same beginning [T] for every row, padded to a multiple of the window; returns the last real position's logits."""
        s, t = self.model.shape, len(ids)
        padded = torch.zeros(1, -(-t // s.window) * s.window, dtype=torch.long, device=self.at.device)
        padded[0, :t] = torch.tensor(ids, device=self.at.device)
        keep = {}
        x, _ = self.model.streams(padded, keep)
        for i, kept in keep.items():
            m = self.model.layers[i].m
            self.state[i] = {"kv": self.buffer(kept["kv"], self.length)}
            if m:
                self.state[i]["k"], self.state[i]["g"] = (self.buffer(v, self.length) for v in kept["rows"])
                self.state[i]["entries"] = self.buffer(kept["entries"], self.length // m)
            if m == 4:
                self.state[i]["ik"], self.state[i]["ig"] = (self.buffer(v, self.length) for v in kept["index_rows"])
                self.state[i]["index_keys"] = self.buffer(kept["index_keys"], self.length // m)
        return self.model.logits(x)[t - 1]

    def buffer(self, v, length):
        out = v.new_zeros(self.rows, length, v.shape[-1])
        out[:, :v.shape[1]] = v
        return out

    @torch.no_grad()
    def step(self, ids, pos):
        """ids, pos [rows]: the token at each row's position -> logits [rows, V]."""
        x = self.model.start(ids[None])[0]
        for i, layer in enumerate(self.model.layers):
            pre, post, comb = layer.hc_attn(x)
            y = ops.mix_in(x, pre, layer.attn_norm, layer.shape.eps)
            x = ops.mix_out(x, self.attend(layer.attn, self.state[i], y[None], pos)[0], post, comb)
            x = layer.feed_forward(x, ids)
        return float_product(self.model.out(x), self.model.head)

    def attend(self, a, state, y, pos):
        """y [1, rows, d]: the rows stand where a sequence's tokens would."""
        s, rotary = self.model.shape, self.model.rotaries[a.m > 0]
        cos, sin = rotary.cos[pos], rotary.sin[pos]
        q, kv, qr = a.project(y, cos, sin)
        q = q[0]
        state["kv"][self.at, pos] = kv[0]
        index = pos[:, None] - torch.arange(s.window - 1, -1, -1, device=pos.device)
        keys = state["kv"][self.at[:, None], index.clamp(min=0)].float()
        near, near_mask = torch.einsum("bhc,bkc->bhk", q.float(), keys), index >= 0
        far = far_mask = entries = None
        if a.m:
            self.compress(a.compressor, state, ("k", "g", "entries"), y, pos, rotary, lambda e: kv_round(e, s.r))
            entries = state["entries"].float()
            far_mask = torch.arange(entries.shape[1], device=pos.device) < ((pos + 1) // a.m)[:, None]
            far = torch.einsum("bhc,bnc->bhn", q.float(), entries)
        if a.m == 4:
            x = a.indexer
            self.compress(x.compressor, state, ("ik", "ig", "index_keys"), y, pos, rotary, x.rounded)
            dots = torch.matmul(x.queries(qr, (cos[:, None], sin[:, None]))[0], state["index_keys"].transpose(1, 2))
            scores = ops.index_scores(dots, x.weights(y)[0])
            far_mask = far_mask & a.select(scores, far_mask)
        near, far = ops.attention_weights(near, far, near_mask, far_mask, a.sink, s.c ** -0.5)
        o = torch.einsum("bhk,bkc->bhc", near, keys)
        if a.m:
            o = o + torch.einsum("bhn,bnc->bhc", far, entries)
        return a.output(o[None], cos, sin)

    def compress(self, compressor, state, names, y, pos, rotary, finish):
        """Stores the token's rows; where it closes a block, the block's entry."""
        k_name, g_name, out = names
        m = compressor.m
        k, g = compressor.rows(y)
        state[k_name][self.at, pos], state[g_name][self.at, pos] = k[0], g[0]
        back = 2 * m if m == 4 else m
        first = (pos + 1) // m * m - back  # the last complete blocks
        index = first[:, None] + torch.arange(back, device=pos.device)
        k, g = (state[n][self.at[:, None], index.clamp(min=0)] for n in (k_name, g_name))
        g = g.masked_fill((index < 0)[..., None], -1e30)
        pooled = compressor.pooled(k, g).view(self.rows, back // m, -1)[:, -1]
        block = ((pos + 1) // m - 1).clamp(min=0)
        entry = finish(ops.norm_rope(pooled, compressor.norm, rotary.cos[block * m], rotary.sin[block * m], compressor.eps))
        closes = ((pos + 1) % m == 0)[:, None]
        state[out][self.at, block] = torch.where(closes, entry, state[out][self.at, block])


class Stepper:
    """Decoder.step, as one CUDA graph where there is a GPU."""

    def __init__(self, decoder):
        self.decoder, self.graph = decoder, None
        self.ids, self.pos = torch.zeros_like(decoder.at), torch.zeros_like(decoder.at)

    def __call__(self, ids, pos):
        self.ids.copy_(ids)
        self.pos.copy_(pos)
        if not self.ids.is_cuda:
            return self.decoder.step(self.ids, self.pos)
        if self.graph is None:
            # Steps write only rows at `pos`, so doing the first one several times over changes nothing.
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(2):
                    self.decoder.step(self.ids, self.pos)
            torch.cuda.current_stream().wait_stream(side)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.out = self.decoder.step(self.ids, self.pos)
        self.graph.replay()
        return self.out
