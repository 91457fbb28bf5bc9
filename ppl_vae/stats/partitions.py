"""How alike two segmentations of a picture are; the adjusted Rand index is scikit-learn's."""

from __future__ import annotations

import torch
from torch import Tensor


def variation_of_information(one: Tensor, other: Tensor) -> float:
    """H(one | other) + H(other | one), in nats: 0 for the same partition (Meila 2007, "Comparing clusterings").

    Args:
        one: The part of each element, whole numbers of any shape.
        other: As many.

    Example:
        >>> variation_of_information(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 0, 0]))
        0.6931471805599453
    """
    p = _together(one, other)
    p = p / p.sum()

    def entropy(q: Tensor) -> Tensor:
        return -torch.xlogy(q, q).sum()

    return float((2 * entropy(p) - entropy(p.sum(0)) - entropy(p.sum(1))).clamp_min(0.0))


def segmentation_covering(found: Tensor, truth: Tensor) -> float:
    """How well segments cover the true ones: the mean over pixels of the best overlap of their true segment.

    The overlap of two segments is |R and S| / |R or S| (Arbelaez et al. 2011, "Contour Detection and
    Hierarchical Image Segmentation", IEEE TPAMI 33). 1 for the same partition.

    Args:
        found: The segment of each pixel, whole numbers of any shape.
        truth: As many.

    Example:
        >>> segmentation_covering(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 0, 1]))
        0.625
    """
    both = _together(truth, found)
    sizes = both.sum(1)
    overlap = both / (sizes.unsqueeze(1) + both.sum(0) - both)
    return float((sizes * overlap.amax(1)).sum() / sizes.sum())


def _together(one: Tensor, other: Tensor) -> Tensor:
    """How many elements are in each part of one and each of the other, float64.

    Raises:
        ValueError: They differ in shape, or are empty.
    """
    if one.shape != other.shape or not one.numel():
        raise ValueError(
            f"two segmentations of one picture are needed, got shapes {tuple(one.shape)} and "
            f"{tuple(other.shape)}"
        )
    (i, rows), (j, columns) = (
        (inverse, len(parts))
        for parts, inverse in (v.flatten().unique(return_inverse=True) for v in (one, other))
    )
    counts = torch.bincount(i * columns + j, minlength=rows * columns)
    return counts.reshape(rows, columns).double()
