"""Writing and reading the published checkpoint layout: FP8 E4M3 linears with E8M0 scales of 128x128 blocks, FP4 experts packed two a
byte with E8M0 scales of 32 columns, BF16 and F32 for the rest."""
import json
import struct

import numpy as np
import torch

import quant

NUMPY = {"F32": np.float32, "I64": np.int64, "I32": np.int32, "BF16": np.uint16, "F8_E4M3": np.uint8, "F8_E8M0": np.uint8, "I8": np.uint8}
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def e4m3_table():
    codes = np.arange(256)
    sign, e, m = np.where(codes & 128, -1.0, 1.0), (codes >> 3) & 15, codes & 7
    return np.where(e == 0, sign * m / 8 * 2.0 ** -6, sign * (1 + m / 8) * 2.0 ** (e - 7.0)).astype(np.float32)


def e4m3_codes(values):
    """F32 values that are E4M3 numbers -> their bytes."""
    table = e4m3_table()[:127]  # 0 .. 448; code 127 is NaN
    a = values.abs().cpu().numpy().astype(np.float32)
    code = np.searchsorted(table, a).astype(np.uint8)
    assert np.array_equal(table[code], a), "not E4M3 values"
    return code | (np.signbit(values.cpu().numpy()).astype(np.uint8) << 7)


def e8m0(scale):
    bits = scale.float().contiguous().cpu().numpy().view(np.uint32)
    assert not (bits & 0x7FFFFF).any(), "not powers of two"
    return (bits >> 23).astype(np.uint8)


def bf16(t):
    x = t.detach().cpu().to(torch.bfloat16).float().contiguous().numpy().view(np.uint32)
    return (x >> 16).astype(np.uint16)


def write(path, tensors):
    """tensors: name -> (dtype, numpy array); bigger elements first, so that every one is aligned."""
    order = sorted(tensors, key=lambda n: (-tensors[n][1].itemsize, n))
    header, at = {}, 0
    for name in order:
        dtype, array = tensors[name]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            f.write(np.ascontiguousarray(tensors[name][1]).tobytes())


def read(path):
    with open(path, "rb") as f:
        data = f.read()
    size = struct.unpack("<Q", data[:8])[0]
    out = {}
    for name, t in json.loads(data[8:8 + size]).items():
        if name != "__metadata__":
            a, b = t["data_offsets"]
            out[name] = (t["dtype"], np.frombuffer(data[8 + size + a:8 + size + b], NUMPY[t["dtype"]]).reshape(t["shape"]))
    return out


def tensor(dtype, array):
    """A stored tensor as F32 (or integers); FP8 and FP4 codes without their scales."""
    if dtype == "BF16":
        return torch.from_numpy((array.astype(np.uint32) << 16).view(np.float32))
    if dtype == "F8_E4M3":
        return torch.from_numpy(e4m3_table()[array])
    if dtype == "F8_E8M0":
        return torch.from_numpy((array.astype(np.uint32) << 23).view(np.float32))
    if dtype == "I8":
        codes = np.stack([array & 15, array >> 4], -1).reshape(array.shape[0], -1)
        values = E2M1[torch.from_numpy((codes & 7).astype(np.int64))]
        return torch.where(torch.from_numpy((codes & 8) != 0), -values, values)
    return torch.from_numpy(array.copy())


class Layout:
    """Which published tensor each parameter is. `put` or `get` is called as f(name, kind, parameter)."""

    def __init__(self, model):
        self.model, self.rows = model, []
        for i, layer in enumerate(model.layers):
            self.block(f"layers.{i}.", layer)
        self.add("embed.weight", "bf16", model.embed)
        self.add("head.weight", "bf16", model.head)
        self.head_mix("", model.out)
        p, m = "mtp.0.", model.mtp
        self.block(p, m.block)
        self.head_mix(p, m.out)
        for name in ("e_proj", "h_proj"):
            self.add(f"{p}{name}.weight", "fp8", getattr(m, name))
        for name in ("enorm", "hnorm"):
            self.add(f"{p}{name}.weight", "bf16", getattr(m, name))

    def add(self, name, kind, parameter, index=None):
        self.rows.append((name, kind, parameter, index))

    def head_mix(self, p, x):
        for name in ("fn", "base", "scale"):
            self.add(f"{p}hc_head_{name}", "f32", getattr(x, name))
        self.add(f"{p}norm.weight", "bf16", x.norm)

    def compressor(self, p, x):
        self.add(p + "ape", "f32", x.ape)
        for name in ("wkv", "wgate", "norm"):
            self.add(f"{p}{name}.weight", "bf16", getattr(x, name))

    def block(self, p, x):
        for name in ("attn", "ffn"):
            self.add(f"{p}{name}_norm.weight", "bf16", getattr(x, name + "_norm"))
            for part in ("fn", "base", "scale"):
                self.add(f"{p}hc_{name}_{part}", "f32", getattr(getattr(x, "hc_" + name), part))
        a, f = x.attn, x.ffn
        for name in ("wq_a", "wq_b", "wkv", "wo_a", "wo_b"):
            self.add(f"{p}attn.{name}.weight", "fp8", getattr(a, name))
        for name in ("q_norm", "kv_norm"):
            self.add(f"{p}attn.{name}.weight", "bf16", getattr(a, name))
        self.add(p + "attn.attn_sink", "f32", a.sink)
        if a.compressor is not None:
            self.compressor(p + "attn.compressor.", a.compressor)
        if a.indexer is not None:
            self.add(p + "attn.indexer.wq_b.weight", "fp8", a.indexer.wq_b)
            self.add(p + "attn.indexer.weights_proj.weight", "bf16", a.indexer.weights_proj)
            self.compressor(p + "attn.indexer.compressor.", a.indexer.compressor)
        self.add(p + "ffn.gate.weight", "bf16", f.gate)
        if f.hashed:
            self.add(p + "ffn.gate.tid2eid", "i64", f.tid2eid)
        else:
            self.add(p + "ffn.gate.bias", "f32", f.bias)
        for e in range(f.w1.shape[0]):
            for name in ("w1", "w2", "w3"):
                self.add(f"{p}ffn.experts.{e}.{name}.weight", "fp4", getattr(f, name), e)
        for name, mine in (("w1", f.s1), ("w2", f.s2), ("w3", f.s3)):
            self.add(f"{p}ffn.shared_experts.{name}.weight", "fp8", mine)


def save(path, model):
    out = {}
    for name, kind, parameter, index in Layout(model).rows:
        v = parameter.detach() if index is None else parameter.detach()[index]
        if kind == "bf16":
            out[name] = ("BF16", bf16(v))
        elif kind == "f32":
            out[name] = ("F32", v.float().cpu().numpy())
        elif kind == "i64":
            out[name] = ("I64", v.cpu().numpy())
        elif kind == "fp8":
            v = v.reshape(-1, v.shape[-1]).cpu()
            parts, scale = quant.block_scales(v)
            out[name] = ("F8_E4M3", e4m3_codes(quant.to_e4m3(parts / scale).view_as(v)))
            out[name[:-len("weight")] + "scale"] = ("F8_E8M0", e8m0(scale[:, 0, :, 0]))
        else:
            parts, scale = quant.fp4_parts(v.cpu())
            code = torch.bucketize(parts.abs().flatten(-2), E2M1).numpy().astype(np.uint8)
            code |= np.signbit(parts.flatten(-2).numpy()).astype(np.uint8) << 3
            out[name] = ("I8", code[:, 0::2] | (code[:, 1::2] << 4))
            out[name[:-len("weight")] + "scale"] = ("F8_E8M0", e8m0(scale[..., 0]))
    write(path, out)


@torch.no_grad()
def load(path, model):
    stored = read(path)
    for name, kind, parameter, index in Layout(model).rows:
        v = tensor(*stored.pop(name))
        if kind in ("fp8", "fp4"):
            scale = tensor(*stored.pop(name[:-len("weight")] + "scale"))
            rows, columns = (128, 128) if kind == "fp8" else (1, 32)
            v = v * scale.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
        target = parameter if index is None else parameter[index]
        target.copy_(v.view(target.shape))
    assert not stored, sorted(stored)
