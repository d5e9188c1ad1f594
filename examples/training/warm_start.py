"""Goes on from a checkpoint whose tokenizer was another: a token that both have keeps its rows of embedding, head and hash table; a new one
begins as the mean of the old tokens that it is made of."""
import json
import os

import torch

import checkpoint


def vocabulary(folder):
    with open(folder, encoding="utf-8") as f:
        made = json.load(f)
    return {**made["model"]["vocab"], **{a["content"]: a["id"] for a in made["added_tokens"]}}


def cut(token, known):
    """Longest known beginnings, one after the other."""
    out = []
    while token:
        n = next(n for n in range(len(token), 0, -1) if token[:n] in known)
        out.append(known[token[:n]])
        token = token[n:]
    return out


@torch.no_grad()
def load(model, folder, tokenizer):
    checkpoint.load(os.path.join(folder, "model.safetensors"), model)
    old, new = vocabulary(os.path.join(folder, "tokenizer.json")), vocabulary(tokenizer)
    made_of = {i: cut(token, old) for token, i in new.items()}
    for rows in (model.embed, model.head):
        was = rows.clone()
        for i, parts in made_of.items():
            rows[i] = was[parts].mean(0)
    for layer in model.layers:
        if layer.ffn.hashed:
            was = layer.ffn.tid2eid.clone()
            for i, parts in made_of.items():
                layer.ffn.tid2eid[i] = was[parts[-1]]
    print(f"{sum(len(p) > 1 for p in made_of.values())} tokens are new", flush=True)
