"""What the mixtures share: weights of components, a start by k-means++, components without rows."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from sklearn.cluster import kmeans_plusplus
from torch import Tensor

EMPTY = 1e-8
"""A component whose expected share of the rows is at most this is empty."""


def responsibilities(log_joint: Tensor, hard: bool) -> tuple[Tensor, Tensor]:
    """p(z | x), or its mode as one-hot vectors, and the sum over rows of log p(x).

    Args:
        log_joint: log p(x, z), components first: `(components, n)`. Overwritten.
        hard: Whether to take the mode, and max_z log p(x, z) in place of log p(x).
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
    """One-hot weights, `(components, n)`: which of the k-means++ seeds is nearest to each row.

    "k-means++: The Advantages of Careful Seeding" (Arthur & Vassilvitskii 2007).

    Args:
        x: Data, `(n, D)`.
        components: Number of seeds.
        seed: Random seed of their draw.

    Raises:
        ValueError: There are fewer rows than components.
    """
    require_enough(components, "components", len(x), "rows")
    rows = x.detach().cpu().double().numpy()
    seeds, _ = kmeans_plusplus(rows, components, random_state=seed % 2**32)
    nearest = torch.cdist(x.double(), torch.as_tensor(seeds, device=x.device)).argmin(1)
    return torch.nn.functional.one_hot(nearest, components).T.to(x.dtype)


def require_enough(parts: int, name: str, given: int, what: str) -> None:
    """Raises an error if EM has fewer rows or steps to start from than components or states.

    Raises:
        ValueError: There are fewer.
    """
    if given < parts:
        raise ValueError(
            f"{parts:,} {name} need at least as many {what} to start from, got {given:,}: use fewer {name}"
        )


def positive_counts(counts: Tensor, num_rows: Tensor) -> tuple[Tensor, Tensor]:
    """The expected rows of each component, raised above 0, and which components are empty.

    Args:
        counts: Expected rows of each component, `(k,)`.
        num_rows: Rows of all components together, `()`.
    """
    return counts.clamp_min(EMPTY * float(num_rows)), counts <= EMPTY * num_rows


def split_empty(logits: Tensor, empty: Tensor, split: Callable[[int, int], None]) -> None:
    """Replaces each empty component by one that is split off from the largest, with a warning.

    The two share the weight of the largest.

    Args:
        logits: log weights of the components, `(k,)`; changed in place.
        empty: Which components are empty, `(k,)`.
        split: Makes its second component a copy of its first one, and moves the two apart.
    """
    for target in empty.nonzero().flatten().tolist():
        largest = int(logits.argmax())
        warnings.warn(
            f"component {target} has no rows: it was split off from component {largest}, the largest",
            stacklevel=3,
        )
        split(largest, target)
        logits[largest] -= math.log(2)
        logits[target] = logits[largest]


def split_logits(logits: Tensor, source: int, target: int) -> None:
    """Copies a row of `logits` to another, and moves the two apart: half of the logits up, half down."""
    step = torch.full_like(logits[source], 0.25)
    step[::2] = -0.25
    logits[target] = logits[source] + step
    logits[source] -= step
