"""Densities that are normal, or mixtures of normals, as their parts."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor


def normals_of(p: dist.TorchDistribution) -> tuple[Tensor, Tensor, Tensor]:
    """The weights, means and roots of a density sum_k pi_k N(m_k, L_k L_k^T).

    Args:
        p: A normal, with independent dimensions or not, or a mixture of normals; of batch shape `()`.

    Returns:
        log pi, `(k,)`; m, `(k, d)`; L, `(k, d, d)`.

    Raises:
        ValueError: It is neither.

    Example:
        >>> p = dist.Normal(torch.zeros(2), torch.tensor([1.0, 3.0])).to_event(1)
        >>> normals_of(p)[2]
        tensor([[[1., 0.],
                 [0., 3.]]])
    """
    if isinstance(p, torch.distributions.MixtureSameFamily):
        log_weights: Tensor = torch.log_softmax(p.mixture_distribution.logits, -1)
        return log_weights, *_parts(p.component_distribution)
    means, roots = _parts(p)
    return means.new_zeros(1), means.unsqueeze(0), roots.unsqueeze(0)


def _parts(p: torch.distributions.Distribution) -> tuple[Tensor, Tensor]:
    if isinstance(p, torch.distributions.MultivariateNormal):
        return p.loc, p.scale_tril
    base = p.base_dist if isinstance(p, torch.distributions.Independent) else p
    if isinstance(base, torch.distributions.Normal):
        return base.loc, torch.diag_embed(base.scale.expand(base.loc.shape))
    raise ValueError(
        f"log p(x) has a closed form only for codes from a normal or from a mixture of normals, and p(z) is "
        f"{type(base).__name__}: fit one by refit_prior(model, guide, x, FullNormal()), or use "
        "annealed_importance_sampling"
    )
