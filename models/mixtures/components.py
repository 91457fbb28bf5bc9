"""What the mixtures share: weighing components, a k-means++ start, components without rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from sklearn.cluster import kmeans_plusplus
from torch import Tensor

EMPTY = 1e-8
"""A component whose expected share of the rows is not above this is empty."""


def row_chunks(x: Tensor, numbers_a_row: int) -> Iterator[Tensor]:
    """Slices of `x` whose intermediate results, `numbers_a_row` each, fit a cache (GPU: its memory)."""
    most = 2**26 if x.is_cuda else 2**18
    rows = max(256, most // max(1, numbers_a_row))
    return iter(x.split(rows))


def responsibilities(log_joint: Tensor, hard: bool) -> tuple[Tensor, Tensor]:
    """p(z | x), or hard: its mode as a one-hot, and the sum over rows of log p(x), hard: max_z log p(x, z).

    Args:
        log_joint: log p(x, z), components first: `(components, n)`. Overwritten.
        hard: whether to take the mode.
    """
    if hard:
        best, index = log_joint.max(0)
        one_hot = torch.zeros_like(log_joint).scatter_(0, index.unsqueeze(0), 1.0)
        return one_hot, best.double().sum()
    best = log_joint.amax(0)
    weights = log_joint.sub_(best).exp_()
    total = weights.sum(0)
    return weights.div_(total), (best + total.log()).double().sum()


def k_means_plus_plus(x: Tensor, components: int, seed: int) -> Tensor:
    """One-hot weights `(components, n)` of the nearest k-means++ seeds (Arthur & Vassilvitskii 2007).

    Args:
        x: data, `(n, D)`.
        components: how many seeds.
        seed: of their draw.

    Raises:
        ValueError: fewer rows than components.
    """
    if len(x) < components:
        raise ValueError(
            f"{components} components need at least as many rows to start from, came {len(x)}: use "
            f"fewer components"
        )
    rows = x.detach().cpu().double().numpy()
    seeds, _ = kmeans_plusplus(rows, components, random_state=seed)
    nearest = torch.cdist(x.double(), torch.as_tensor(seeds, device=x.device)).argmin(1)
    return torch.nn.functional.one_hot(nearest, components).T.to(x.dtype)
