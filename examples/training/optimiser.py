"""Muon for the matrices inside the blocks, AdamW for embeddings, head, norms, gates and mHC's coefficients (as in V4's report)."""
import torch

OTHERS = ("embed", "head", ".fn", "gate", "weights_proj", "ape")


def is_matrix(name, p):
    return p.ndim >= 2 and ("wgate" in name or not any(part in name for part in OTHERS))


def orthogonal(g):
    """Newton-Schulz: the nearest matrix with singular values near 1, over leading axes."""
    x = g.bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.mT if tall else x).float()


class Muon:
    def __init__(self, parameters, momentum=0.95, decay=0.1):
        self.groups, self.momentum, self.decay = {}, momentum, decay
        for p in parameters:
            self.groups.setdefault(p.shape[-2:], []).append(p)
        self.state = {p: torch.zeros_like(p) for ps in self.groups.values() for p in ps}

    @torch.no_grad()
    def step(self, rate):
        for shape, ps in self.groups.items():
            grads = [p.grad for p in ps]
            moments = [self.state[p] for p in ps]
            torch._foreach_mul_(moments, self.momentum)
            torch._foreach_add_(moments, grads)
            ahead = torch._foreach_add(grads, moments, alpha=self.momentum)
            turned = orthogonal(torch.cat([a.reshape(-1, *shape) for a in ahead]))
            updates = [u.view_as(p) for u, p in zip(turned.split([p.numel() // shape.numel() for p in ps]), ps)]
            torch._foreach_mul_(ps, 1 - rate * self.decay)
            torch._foreach_add_(ps, updates, alpha=-rate * 0.2 * max(shape) ** 0.5)


class Optimiser:
    def __init__(self, model, matrix_rate=6e-3, other_rate=2e-3):
        named = [(n, p) for n, p in model.named_parameters()]
        self.muon = Muon([p for n, p in named if is_matrix(n, p)])
        self.adam = torch.optim.AdamW([p for n, p in named if not is_matrix(n, p)], other_rate, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
        self.parameters, self.matrix_rate, self.other_rate = [p for _, p in named], matrix_rate, other_rate

    def step(self, share):
        """share: of the full learning rates."""
        for p in self.parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        self.muon.step(self.matrix_rate * share)
        self.adam.param_groups[0]["lr"] = self.other_rate * share
        self.adam.step()
        for p in self.parameters:
            p.grad = None
