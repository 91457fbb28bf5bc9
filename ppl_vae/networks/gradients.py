"""A gradient that passes straight through a choice that has none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def straight_through(vectors: Tensor, codes: Tensor, *, rotate: bool = False) -> Tensor:
    """The codes' vectors, with the gradient of the vectors that they stand for.

    Args:
        vectors: L, `(*batch, dim)`.
        codes: C, of the same shape; they get no gradient.
        rotate: Whether the gradient is that of the rotation and scaling that take L to C.

    Returns:
        C, exactly.

    Example:
        >>> vectors = torch.tensor([[3.0, 4.0]], requires_grad=True)
        >>> read = straight_through(vectors, torch.tensor([[0.0, 10.0]]), rotate=True)
        >>> read, torch.autograd.grad(read[0, 1], vectors)[0]  # along L, twice as long
        (tensor([[ 0., 10.]], grad_fn=<...>), tensor([[1.2000, 1.6000]]))
    """
    found: Tensor = _StraightThrough.apply(vectors, codes.detach(), rotate)
    return found


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vectors: Tensor, codes: Tensor, rotate: bool) -> Tensor:
        ctx.rotate = rotate
        if rotate:
            ctx.save_for_backward(vectors, codes)
        return codes.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        if not ctx.rotate:
            return gradient, None, None
        vectors, codes = ctx.saved_tensors
        tiny = torch.finfo(vectors.dtype).tiny ** 0.5
        length = vectors.norm(dim=-1, keepdim=True).clamp_min(tiny)
        of_code = codes.norm(dim=-1, keepdim=True)
        a, b = vectors / length, codes / of_code.clamp_min(tiny)
        # R = I - 2 r r^T + 2 b a^T, with r the half-way direction, takes a to b; its transpose is needed.
        r = a + b
        r = r / r.norm(dim=-1, keepdim=True).clamp_min(tiny)
        turned = (
            gradient
            - 2 * (gradient * r).sum(-1, keepdim=True) * r
            + 2 * (gradient * b).sum(-1, keepdim=True) * a
        )
        return turned * (of_code / length), None, None
