"""Single latent dimensions: their names, and the KL of each."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from ppl_vae.pairs.analytic_kl import elementwise_kl
from ppl_vae.pairs.densities import RowDensities, stated_moment
from ppl_vae.pairs.layout import rows_first
from ppl_vae.pairs.moments import over_draws

COLLAPSED = 0.01
"""Mean KL in nats below which a dimension carries nothing."""


def names_of_dimensions(site: str, shape: torch.Size) -> list[str]:
    """`z[0]`, `z[1]`, ... for a vector, `z[0][0]`, ... for a matrix, `z` for a scalar."""
    return [
        site + "".join(f"[{i}]" for i in index) for index in itertools.product(*map(range, shape))
    ]


def kl_of_dimensions(
    rows: RowDensities, name: str, prior: tuple[Tensor, Tensor], analytic: bool
) -> Tensor:
    """KL(q || p) of each number of a latent, the mean over the draws, nats, `(n, *event)`.

    If guide or prior do not factorize over the numbers, it is the KL of Gaussians with their means and
    variances.

    Args:
        rows: Draws of the rows.
        name: The latent site.
        prior: Mean and variance of each number under the prior, `(n, *event)` or `(*event)`.
        analytic: Whether the site's analytic KL is its share of the rate (see `mean_field_violations`).
    """
    of_draws = _kl_of_draws(rows, name, analytic)
    return _kl_of_moments(rows, name, prior) if of_draws is None else of_draws.mean(0).double()


def kl_and_noise_of_dimensions(
    rows: RowDensities, name: str, prior: tuple[Tensor, Tensor], analytic: bool
) -> tuple[Tensor, Tensor]:
    """`kl_of_dimensions`, and the variance that draws give it in each row, `(n, *event)` each.

    The variance is 0 where nothing is drawn for the KL. Where the KL comes from means and variances of draws,
    it is that for a dimension that carries nothing: K draws of the prior's own values. Half of the squared mean
    varies by 2 / K^2 then, half of s^2 - log s^2 by the trigamma function of a = (K - 1) / 2, less 1 / a.

    Args:
        rows: Draws of the rows.
        name: The latent site.
        prior: As for `kl_of_dimensions`.
        analytic: As for `kl_of_dimensions`.
    """
    of_draws = _kl_of_draws(rows, name, analytic)
    if of_draws is not None:
        samples = len(of_draws)
        kl, noise = over_draws(of_draws)
        return kl, noise / samples
    found = _kl_of_moments(rows, name, prior)
    of_rows = torch.zeros_like(rows.latents[name][0], dtype=torch.float64)
    if stated_moment(rows, rows.layout, name, "mean") is not None:
        return found, of_rows
    samples = len(rows.log_guide)
    half = torch.tensor((samples - 1) / 2, dtype=torch.float64)
    of_logarithm = float(torch.special.polygamma(1, half) - 1 / half)
    return found, of_rows + 0.25 * (2 / samples**2 + of_logarithm)


def _kl_of_draws(rows: RowDensities, name: str, analytic: bool) -> Tensor | None:
    """The KL of each number in each draw, `(samples, n, *event)`; None if guide or prior do not factorize."""
    layout, (samples, n) = rows.layout, rows.log_guide.shape
    site = rows.guide_trace.nodes[name]
    kl = elementwise_kl(site, rows.model_trace.nodes[name], analytic)
    if kl is None:
        return None
    kl = kl.reshape(site["fn"].batch_shape + site["fn"].event_shape)
    return rows_first({**site, "value": kl}, layout, samples, n)


def _kl_of_moments(rows: RowDensities, name: str, prior: tuple[Tensor, Tensor]) -> Tensor:
    """The KL of Gaussians with the means and variances of guide and prior, `(n, *event)`."""
    layout, samples = rows.layout, len(rows.log_guide)
    stated = stated_moment(rows, layout, name, "mean")
    centers = (rows.latents[name] if stated is None else stated).double()
    variance, (mean, total) = stated_moment(rows, layout, name, "variance"), over_draws(centers)
    if stated is not None and variance is not None:
        total = total + variance.double().mean(0)
    found = _gaussian_kl(mean, total, *prior)
    return found if stated is not None else found - _sampling_bias(total / prior[1], samples)


def _gaussian_kl(
    mean: Tensor, variance: Tensor, prior_mean: Tensor, prior_variance: Tensor
) -> Tensor:
    """KL from a Gaussian with a dimension's mean and variance to one with the prior's."""
    q = Normal(mean, variance.clamp(min=1e-12).sqrt())
    kl: Tensor = kl_divergence(q, Normal(prior_mean, prior_variance.clamp(min=1e-12).sqrt()))
    return kl


def _sampling_bias(variance: Tensor, samples: int) -> Tensor:
    """What estimating a Gaussian's mean and variance from samples adds to its KL.

    For a variance v in units of the prior's, the squared mean is too large by v / K, and the logarithm of
    the variance too small by log((K - 1) / 2) - digamma((K - 1) / 2).
    """
    half = torch.tensor((samples - 1) / 2, dtype=torch.float64, device=variance.device)
    bias: Tensor = 0.5 * (variance / samples + half.log() - torch.special.digamma(half))
    return bias
