"""KL, posterior means and names of the single latent dimensions."""

from __future__ import annotations

import pyro.poutine as poutine
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from ppl_vae.pairs import (
    Batch,
    Layout,
    Pair,
    RowDensities,
    as_args,
    elementwise,
    elementwise_kl,
    many_samples,
    rows_first,
    stated_moment,
)

NUM_DRAWS = 32


def note_on_moments(names: tuple[str, ...]) -> tuple[str, ...]:
    """What a reader of the dimensions' KL must know of latents that do not factorise."""
    if not names:
        return ()
    sites = ", ".join(f"'{name}'" for name in names)
    return (
        f"guide or prior of {sites} does not factorise over its dimensions: the KL of each is that of the "
        "Gaussians with its means and variances; they need not add up to the rate",
    )


def latent_dimensions(
    pair: Pair, layout: Layout, batch: Batch, rows: RowDensities, analytic: bool
) -> tuple[Tensor, Tensor, Tensor, tuple[str, ...]]:
    """KL, posterior mean and the latter's sampling variance of each row and dimension; the names."""
    kls, means, noises, names = [], [], [], []
    samples, n = rows.log_guide.shape
    for name in layout.latents:
        value = rows.latents[name].double()
        stated = stated_moment(rows, layout, name, "mean")
        centres = value if stated is None else stated.double()
        mean, noise = centres.mean(0), centres.var(0) / samples
        guide_site, model_site = rows.guide_trace.nodes[name], rows.model_trace.nodes[name]
        kl = elementwise_kl(guide_site, model_site, analytic)
        if kl is not None:
            fn = guide_site["fn"]
            kl = kl.reshape(fn.batch_shape + fn.event_shape)
            kl = rows_first({**guide_site, "value": kl}, layout, samples, n).mean(0)
        else:
            variance = stated_moment(rows, layout, name, "variance")
            spread = centres.var(0)
            if stated is not None and variance is not None:
                spread = spread + variance.double().mean(0)
            prior_mean, prior_variance = _prior_moments(pair, layout, batch, rows, name)
            kl = _gaussian_kl(mean, spread, prior_mean, prior_variance)
            if stated is None:
                kl = kl - _sampling_bias(spread / prior_variance, samples)
        kls.append(kl.double().reshape(n, -1))
        means.append(mean.reshape(n, -1))
        noises.append(noise.reshape(n, -1))
        shape = mean.shape[1:]
        names += (
            [
                name + "".join(f"[{i}]" for i in index)
                for index in torch.cartesian_prod(*[torch.arange(s) for s in shape])
                .reshape(-1, len(shape))
                .tolist()
            ]
            if shape
            else [name]
        )
    return torch.cat(kls, 1), torch.cat(means, 1), torch.cat(noises, 1), tuple(names)


def _gaussian_kl(
    mean: Tensor, variance: Tensor, prior_mean: Tensor, prior_variance: Tensor
) -> Tensor:
    """KL of the Gaussian with a dimension's mean and variance against that with the prior's."""
    q = Normal(mean, variance.clamp(min=1e-12).sqrt())
    kl: Tensor = kl_divergence(q, Normal(prior_mean, prior_variance.clamp(min=1e-12).sqrt()))
    return kl


def _sampling_bias(variance: Tensor, samples: int) -> Tensor:
    """What estimating a Gaussian's mean and variance from samples adds to its KL.

    With a variance v in units of the prior's, the squared mean is too large by v / K, and the logarithm of
    the variance too small by log((K - 1) / 2) - digamma((K - 1) / 2).
    """
    half = torch.tensor((samples - 1) / 2, dtype=torch.float64, device=variance.device)
    bias: Tensor = 0.5 * (variance / samples + half.log() - torch.special.digamma(half))
    return bias


def _prior_moments(
    pair: Pair, layout: Layout, batch: Batch, rows: RowDensities, name: str
) -> tuple[Tensor, Tensor]:
    """Mean and variance of each number of a latent under the prior, ``(n, *event)`` or ``(*event)``.

    Those that the prior states; if it states none, or one for each value of an enumerated latent, those of
    draws from the model.
    """
    site = rows.model_trace.nodes[name]
    single = elementwise(site["fn"])
    fn = site["fn"] if single is None else single
    samples, n = rows.log_guide.shape
    if len(site["fn"].batch_shape) <= layout.nesting + 1:
        try:
            mean, variance = (
                rows_first({**site, "value": moment}, layout, samples, n).double()
                for moment in (fn.mean, fn.variance)
            )
        except NotImplementedError:
            pass
        else:
            return mean.mean(0), variance.mean(0) + mean.var(0, unbiased=False)
    drawn = NUM_DRAWS if layout.vectorizes else 1
    with many_samples(layout, drawn):
        trace = poutine.trace(pair.model).get_trace(*as_args(batch))
    value = rows_first(trace.nodes[name], layout, drawn, n).double().flatten(0, 1)
    return value.mean(0), value.var(0)
