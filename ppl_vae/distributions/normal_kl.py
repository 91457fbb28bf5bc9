"""The KL from normals with any covariance to independent normals, which `torch.distributions` lacks.

Importing this file registers it for `torch.distributions.kl_divergence`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    register_kl,
)


def kl_multivariate_normal(p: MultivariateNormal, q: Independent[Any]) -> Tensor:
    """KL(p || q) for p of any covariance and independent normals q, of p's batch shape, in nats."""
    # Not expanded over the batch: a posterior often has one covariance for all rows.
    factor = p._unbroadcasted_scale_tril
    half_log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return _kl(p, q, factor, half_log_det)


def kl_low_rank_normal(p: LowRankMultivariateNormal, q: Independent[Any]) -> Tensor:
    """KL(p || q) for p of a low-rank covariance and independent normals q, of p's batch shape, in nats."""
    # log det (W W^T + D) = log det D + log det (I + W^T D^-1 W), not expanded over the batch either.
    diagonal = p._unbroadcasted_cov_diag
    capacitance = p._capacitance_tril.diagonal(dim1=-2, dim2=-1)
    half_log_det = 0.5 * diagonal.log().sum(-1) + capacitance.log().sum(-1)
    return _kl(p, q, p._unbroadcasted_cov_factor, half_log_det, diagonal)


def _kl(
    p: Distribution,
    q: Independent[Any],
    factor: Tensor,
    half_log_det: Tensor,
    diagonal: Tensor | None = None,
) -> Tensor:
    """KL(N(m, Sigma) || N(mu, diag(s^2))), Sigma = A A^T + diag(v), per element of the batch, in nats.

    1/2 (|A / s|_F^2 + sum v / s^2 + |(m - mu) / s|^2 - d) + sum log s - 1/2 log det Sigma.

    Args:
        p: The first distribution, whose mean m and event shape `(d,)` are used.
        q: The second, `Normal(mu, s).to_event(1)`.
        factor: A, `(*batch, d, r)`; need not be expanded over p's batch.
        half_log_det: Half the logarithm of Sigma's determinant.
        diagonal: v, `(*batch, d)`; 0 if none is given.

    Raises:
        NotImplementedError: `q` is something else.
    """
    if not isinstance(q.base_dist, Normal) or q.reinterpreted_batch_ndims != 1:
        raise NotImplementedError(
            f"no closed form for the KL from a {type(p).__name__} to {q}; it needs a Normal with "
            f"one event dimension"
        )
    loc, scale = q.base_dist.loc, q.base_dist.scale
    spread = (factor / scale.unsqueeze(-1)).square().sum((-2, -1))
    if diagonal is not None:
        spread = spread + (diagonal / scale.square()).sum(-1)
    distance = ((p.mean - loc) / scale).square().sum(-1)
    log_ratio = scale.log().sum(-1) - half_log_det
    kl: Tensor = 0.5 * (spread + distance - p.event_shape[0]) + log_ratio
    return kl


register_kl(MultivariateNormal, Independent)(kl_multivariate_normal)
register_kl(LowRankMultivariateNormal, Independent)(kl_low_rank_normal)
