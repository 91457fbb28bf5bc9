"""Single latent dimensions: their names, and the KL of each."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import pyro.distributions
import torch
from torch import Tensor
from torch.distributions import Normal

from ppl_vae.pairs.analytic_kl import elementwise_kl
from ppl_vae.pairs.densities import RowDensities, stated_moment
from ppl_vae.pairs.layout import rows_first
from ppl_vae.pairs.moments import over_draws
from ppl_vae.pairs.traces import elementwise, mask_kind

_NORMALS = {Normal, pyro.distributions.Normal}

COLLAPSED = 0.01
"""Mean KL in nats below which a dimension carries nothing."""


def names_of_dimensions(site: str, shape: torch.Size) -> list[str]:
    """`z[0]`, `z[1]`, ... for a vector, `z[0][0]`, ... for a matrix, `z` for a scalar."""
    return [
        site + "".join(f"[{i}]" for i in index) for index in itertools.product(*map(range, shape))
    ]


class NormalRows(NamedTuple):
    """A normal latent of n rows whose d numbers are independent, in guide and model, and depend on no draw.

    Attributes:
        mean: That of q, `(n, d)`.
        scale: Its standard deviations, `(n, d)`.
        prior_mean: That of p, `(n, d)`; `(1, d)` if it is the same for all rows.
        prior_scale: Its standard deviations, likewise.
    """

    mean: Tensor
    scale: Tensor
    prior_mean: Tensor
    prior_scale: Tensor


def normal_rows(rows: RowDensities, name: str) -> NormalRows | None:
    """A latent whose means and KL need no draws, as views of its parameters; None if it may be none.

    That they depend on no draw is seen by their strides: `expand` has repeated them for each draw. So a KL of
    such a latent is its share of the rate: see `mean_field_violations`.
    """
    layout, (samples, n) = rows.layout, rows.log_guide.shape
    if layout.nesting != 1 or not layout.vectorizes or samples < 2:
        return None
    guide_site, model_site = rows.guide_trace.nodes[name], rows.model_trace.nodes[name]
    q, p = elementwise(guide_site["fn"]), elementwise(model_site["fn"])
    if q is None or p is None or not mask_kind(guide_site):
        return None
    if type(q) not in _NORMALS or type(p) not in _NORMALS:
        return None
    shape = (n, *rows.latents[name].shape[2:])
    found: list[Tensor] = []
    for of in (q.loc, q.scale, p.loc, p.scale):
        if of.dim() > len(shape):  # by draws, too; what is given its latents is not
            if of.stride(0):
                return None
            of = of[0]
        if of.shape != shape:
            return None
        same = len(found) > 1 and n > 1 and not of.stride(0)
        found.append(of[:1].reshape(1, -1) if same else of.reshape(n, -1))
    return NormalRows(*found)


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
    if of_draws is not None:
        return of_draws.mean(0).double()
    return _kl_of_moments(rows, name, prior, stated_moment(rows, rows.layout, name, "mean"))


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
    stated = stated_moment(rows, rows.layout, name, "mean")
    found = _kl_of_moments(rows, name, prior, stated)
    of_rows = torch.zeros_like(rows.latents[name][0], dtype=torch.float64)
    if stated is not None:
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


def _kl_of_moments(
    rows: RowDensities, name: str, prior: tuple[Tensor, Tensor], stated: Tensor | None
) -> Tensor:
    """The KL of Gaussians with the means and variances of guide and prior, `(n, *event)`.

    Args:
        rows: Draws of the rows.
        name: The latent site.
        prior: Mean and variance of each number under the prior.
        stated: The mean that the guide states, if it does.
    """
    layout, samples = rows.layout, len(rows.log_guide)
    mean, total = over_draws(rows.latents[name] if stated is None else stated)
    variance = None if stated is None else stated_moment(rows, layout, name, "variance")
    if variance is not None:
        total = total + over_draws(variance)[0]
    found = _gaussian_kl(mean, total, *prior)
    return found if stated is not None else found - _sampling_bias(total / prior[1], samples)


def _gaussian_kl(
    mean: Tensor, variance: Tensor, prior_mean: Tensor, prior_variance: Tensor
) -> Tensor:
    """KL from a Gaussian with a dimension's mean and variance to one with the prior's."""
    least = 1e-12
    prior_variance = prior_variance.clamp(min=least)
    ratio = variance.clamp(min=least).div_(prior_variance)
    # In place: new memory for each of these takes most of the time.
    kl = (mean - prior_mean).square_().div_(prior_variance).add_(ratio)
    return kl.sub_(ratio.log_()).sub_(1.0).mul_(0.5)


def _sampling_bias(variance: Tensor, samples: int) -> Tensor:
    """What estimating a Gaussian's mean and variance from samples adds to its KL.

    For a variance v in units of the prior's, the squared mean is too large by v / K, and the logarithm of
    the variance too small by log((K - 1) / 2) - digamma((K - 1) / 2).
    """
    half = torch.tensor((samples - 1) / 2, dtype=torch.float64, device=variance.device)
    bias: Tensor = 0.5 * (variance / samples + half.log() - torch.special.digamma(half))
    return bias
