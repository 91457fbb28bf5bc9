"""Mean and mode of a mixture of chroma, with a component for each segment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ppl_vae.distributions import ChromaLogistic

_LEVELS = 256
"""Levels of luma."""


def mean_of_mixture(weights: Tensor, components: Sequence[Any], luma: Tensor) -> Tensor:
    """The mean of mixtures of the same weights, averaged, `(n, h, w, 2)`.

    Args:
        weights: P(z_i = k | x), `(n, h, w, K)`.
        components: P(y_i | z_i = k, x) for each mixture, of batch shape `(n, h, w, K)`.
        luma: Y, `(n, h, w)`.
    """
    tables = [of_levels(p) for p in components]
    if None not in tables:
        means = torch.stack([table.mean for table in tables if table is not None]).mean(0)
        return _weighted(weights, means[luma.long()])
    total = torch.zeros(*luma.shape, 2, dtype=weights.dtype, device=weights.device)
    for p in components:
        total += _weighted(weights, p.mean)
    return total / len(components)


def mode_of_mixture(weights: Tensor, components: Any, luma: Tensor) -> Tensor:
    """The likeliest of the components' modes under the mixture, `(n, h, w, 2)`.

    Args:
        weights: P(z_i = k | x), `(n, h, w, K)`.
        components: P(y_i | z_i = k, x), of batch shape `(n, h, w, K)`.
        luma: Y, `(n, h, w)`.
    """
    table = of_levels(components)
    level = luma.long()
    candidates = components.mode if table is None else table.mode  # (n, h, w, K, 2) or (256, K, 2)
    best = most = torch.empty(())
    for k, candidate in enumerate(candidates.unbind(-2)):
        if table is None:
            masses = components.log_prob(candidate.unsqueeze(-2)).exp()
        else:
            masses = table.log_prob(candidate.unsqueeze(-2)).exp()[level]
            candidate = candidate[level]
        # No mass of a likely color is too small for single precision: one of K components is at its mode.
        mass = (weights * masses).sum(-1)
        best = candidate if k == 0 else torch.where((mass > most).unsqueeze(-1), candidate, best)
        most = mass if k == 0 else torch.maximum(most, mass)
    return best


def of_levels(components: Any) -> ChromaLogistic | None:
    """The components at each of the 256 levels of luma, of batch shape `(256, K)`.

    With a palette a component depends on the luma of the pixel alone: so there are 256 of each, not as many
    as pixels.

    Args:
        components: P(y_i | z_i = k, x), of batch shape `(n, h, w, K)`.

    Returns:
        None if they depend on more than the luma, or are no `ChromaLogistic`.
    """
    if type(components) is not ChromaLogistic:
        return None
    p = components
    pixels = (*p.loc.shape[:-2], *p.scale.shape[:-2], *p.slope.shape[:-1])
    if p.loc.dim() != 5 or any(size != 1 for size in pixels):
        return None
    levels = torch.arange(_LEVELS, device=p.loc.device).unsqueeze(-1)
    loc, scale = (of.reshape(of.shape[-2:]) for of in (p.loc, p.scale))
    return ChromaLogistic(levels, loc, scale, p.slope.reshape(-1), validate_args=False)


def _weighted(weights: Tensor, values: Tensor) -> Tensor:
    """Sums over segments, `(n, h, w, 2)`."""
    return (weights.unsqueeze(-2) @ values).squeeze(-2)
