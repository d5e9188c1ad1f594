"""The doubly normalised 4 x 4 mixing matrices of mHC: plain PyTorch, and one Triton kernel each way on a GPU."""
import torch

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None


def sinkhorn_plain(logits, eps, iterations):
    """logits [N, H, H] F32 -> softmax of rows plus eps, then columns and rows divided by (their sum + eps) in turn."""
    m = torch.softmax(logits, -1) + eps
    m = m / (m.sum(-2, keepdim=True) + eps)
    for _ in range(iterations - 1):
        m = m / (m.sum(-1, keepdim=True) + eps)
        m = m / (m.sum(-2, keepdim=True) + eps)
    return m


if triton is not None:
    @triton.jit
    def _forward(x_ptr, saved_ptr, out_ptr, n, eps, iterations: tl.constexpr, BLOCK: tl.constexpr):
        # saved [2 * iterations, n, 16]: the matrix after every step, which is all that the way back needs.
        rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        at = rows[:, None, None] * 16 + tl.arange(0, 4)[None, :, None] * 4 + tl.arange(0, 4)[None, None, :]
        mask = (rows < n)[:, None, None]
        m = tl.load(x_ptr + at, mask=mask, other=0.0)
        m = tl.exp(m - tl.max(m, 2)[:, :, None])
        m = m / tl.sum(m, 2)[:, :, None]
        tl.store(saved_ptr + at, m, mask=mask)
        m = m + eps
        m = m / (tl.sum(m, 1)[:, None, :] + eps)
        step = n.to(tl.int64) * 16
        tl.store(saved_ptr + step + at, m, mask=mask)
        for i in range(1, iterations):
            m = m / (tl.sum(m, 2)[:, :, None] + eps)
            tl.store(saved_ptr + (2 * i) * step + at, m, mask=mask)
            m = m / (tl.sum(m, 1)[:, None, :] + eps)
            tl.store(saved_ptr + (2 * i + 1) * step + at, m, mask=mask)
        tl.store(out_ptr + at, m, mask=mask)

    @triton.jit
    def _backward(grad_ptr, saved_ptr, out_ptr, n, eps, iterations: tl.constexpr, BLOCK: tl.constexpr):
        # y = x / (s + eps), s = sum x: dx = (dy - sum(dy * y)) / (s + eps), where s is taken from the step before.
        rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        at = rows[:, None, None] * 16 + tl.arange(0, 4)[None, :, None] * 4 + tl.arange(0, 4)[None, None, :]
        mask = (rows < n)[:, None, None]
        step = n.to(tl.int64) * 16
        g = tl.load(grad_ptr + at, mask=mask, other=0.0)
        for j in range(1, iterations):
            i = iterations - j
            y = tl.load(saved_ptr + (2 * i + 1) * step + at, mask=mask, other=0.25)
            x = tl.load(saved_ptr + (2 * i) * step + at, mask=mask, other=0.25)
            g = (g - tl.sum(g * y, 1)[:, None, :]) / (tl.sum(x, 1)[:, None, :] + eps)
            y = x
            x = tl.load(saved_ptr + (2 * i - 1) * step + at, mask=mask, other=0.25)
            g = (g - tl.sum(g * y, 2)[:, :, None]) / (tl.sum(x, 2)[:, :, None] + eps)
        p = tl.load(saved_ptr + at, mask=mask, other=0.25)
        y = tl.load(saved_ptr + step + at, mask=mask, other=0.25)
        g = (g - tl.sum(g * y, 1)[:, None, :]) / (tl.sum(p + eps, 1)[:, None, :] + eps)
        g = p * (g - tl.sum(g * p, 2)[:, :, None])
        tl.store(out_ptr + at, g, mask=mask)


class _Sinkhorn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, eps, iterations):
        logits = logits.contiguous()
        n = logits.shape[0]
        out, saved = torch.empty_like(logits), logits.new_empty(2 * iterations, n, 4, 4)
        _forward[(triton.cdiv(n, 64),)](logits, saved, out, n, eps, iterations, BLOCK=64, num_warps=4)
        ctx.save_for_backward(saved)
        ctx.eps, ctx.iterations = eps, iterations
        return out

    @staticmethod
    def backward(ctx, grad):
        (saved,) = ctx.saved_tensors
        grad = grad.contiguous()
        out = torch.empty_like(grad)
        n = grad.shape[0]
        _backward[(triton.cdiv(n, 64),)](grad, saved, out, n, ctx.eps, ctx.iterations, BLOCK=64, num_warps=4)
        return out, None, None


def sinkhorn(logits, eps, iterations):
    if triton is None or not logits.is_cuda or not torch.is_grad_enabled():
        return sinkhorn_plain(logits, eps, iterations)
    return _Sinkhorn.apply(logits, eps, iterations)
