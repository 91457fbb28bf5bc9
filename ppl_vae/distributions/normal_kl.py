"""The closed form of the KL from any normal distribution to independent normals."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributions import Distribution, Independent, Normal


def kl_to_independent_normals(
    p: Distribution,
    q: Independent[Any],
    factor: Tensor,
    half_log_det: Tensor,
    diagonal: Tensor | None = None,
) -> Tensor:
    """Return KL(N(m, Sigma) || N(mu, diag(s^2))), Sigma = A A^T + diag(v).

    1/2 (|A / s|_F^2 + sum v / s^2 + |(m - mu) / s|^2 - d) + sum log s - 1/2 log det Sigma, per
    element of the batch, in nats. `torch.distributions` lacks it.

    Args:
        p: the first distribution, whose mean m and event shape `(d,)` are used.
        q: the second, `Normal(mu, s).to_event(1)`.
        factor: A, `(*batch, d, r)`; need not be expanded over p's batch.
        half_log_det: half the logarithm of Sigma's determinant.
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
