"""`refit_prior`: a new prior for a trained pair, fitted to its aggregate posterior."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ppl_vae.checks import Session, opened
from ppl_vae.pairs import DataLike, Program, sample_rows, stated_moment, tensors_of
from ppl_vae.runtime import described, require_samples


class PriorDescription(Protocol):
    """Builds a prior once the sizes are known, as `ppl_vae.models.MixturePrior(20)` does."""

    def build(self, data_shape: Sequence[int], latent_dim: int) -> nn.Module:
        """The module whose `forward()` is p(z)."""


def refit_prior(
    model: nn.Module,
    guide: Program,
    x: DataLike,
    prior: PriorDescription,
    *,
    num_draws: int = 10,
    seed: int | None = None,
    progress: bool | None = None,
) -> Any:
    r"""Fits a prior to the aggregate posterior q(z) = 1/n sum_i q(z | x_i); all else stays as it is.

    A prior that was fixed during training does not match the codes, so samples from it do not look like the
    data. The prior that is best for the ELBO of the given rows maximizes E_q(z) log p(z): a diagonal Gaussian
    by its moments in closed form (the variance within rows plus that between their means), a mixture by EM
    on draws, a flow by gradient steps on draws ("ex-post density estimation", *From Variational to
    Deterministic Autoencoders*, arXiv:1903.12436).

    Args:
        model: The model; its `model.prior` is the module whose `forward()` is p(z).
        guide: The guide.
        x: The rows whose posteriors count: those trained on, as for `evaluate`.
        prior: The new prior: `DiagonalNormal()`, `MixturePrior(20)`, `FlowPrior()`, or any description whose
            module has a method `fit_to(mean, variance, draws)`.
        num_draws: Draws from each row's q(z | x).
        seed: Seed for draws and starts; None draws from torch's global generator.
        progress: Whether to show a progress bar; None shows one on a terminal.

    Returns:
        A copy of the model with the new prior. Weights are copies too: the given model does not change.

    Raises:
        TypeError: The model has no module `prior`, or the new prior cannot be fitted.
        ValueError: The guide does not sample one vector per row, or `num_draws` is less than 2.
        PairError: As from `evaluate`.

    Example:
        >>> from ppl_vae.guides import MeanField
        >>> from ppl_vae.models import VAE, DiagonalNormal
        >>> model, guide = VAE((3,), latent_dim=2), MeanField((3,), latent_dim=2)
        >>> x = torch.bernoulli(torch.full((100, 3), 0.5))
        >>> refitted = refit_prior(model, guide, x, DiagonalNormal())
        >>> refitted.prior().mean.shape, model.prior().mean
        (torch.Size([2]), tensor([0., 0.]))
    """
    require_samples("num_draws", num_draws, least=2)
    if isinstance(prior, type) or not hasattr(prior, "build"):
        raise TypeError(
            f"prior must be a description such as MixturePrior(20), got {described(prior)}"
        )
    with opened(model, guide, x, seed=seed, progress=progress) as session:
        old = getattr(model, "prior", None)
        if not isinstance(old, nn.Module):
            raise TypeError(
                f"refit_prior replaces model.prior, the module whose forward() is p(z), but "
                f"{type(model).__name__} has no such module: sample z from self.prior() in the model, with "
                "self.prior = StandardNormal().build(data_shape, latent_dim)"
            )
        mean, variance, draws = _posteriors(session, num_draws)
        data_shape = tuple(tensors_of(session.first)[0].shape[1:])
        new = prior.build(data_shape, mean.shape[-1]).to(draws)
        fit_to = getattr(new, "fit_to", None)
        if fit_to is None:
            raise TypeError(
                f"{type(prior).__name__} cannot be fitted to the aggregate posterior (its module has no "
                "fit_to): use DiagonalNormal, MixturePrior or FlowPrior"
            )
        fit_to(mean, variance, draws)
    # The old prior is not copied: it may hold on to the guide.
    return copy.deepcopy(model, {id(old): new.train(model.training)})


def _posteriors(session: Session, num_draws: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of each row's q(z | x), `(n, d)`, and draws from it, `(num_draws, n, d)`."""
    pair, layout = session.pair, session.layout
    site = layout.latents[0] if len(layout.latents) == 1 else None
    if site is None or sample_rows(pair, layout, session.first, 1).latents[site].dim() != 3:
        raise ValueError(
            "refit_prior needs a guide that samples one vector per row, but the latents of a row are "
            f"{', '.join(layout.latents) or 'none'}"
        )
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for chunk in session.chunks(session.rows_at_once(num_draws), "refit_prior"):
        rows = session.sample(chunk, num_draws)
        z = rows.latents[site]
        mean, variance = (stated_moment(rows, rows.layout, site, m) for m in ("mean", "variance"))
        if mean is None or variance is None:
            mean, variance = z, torch.zeros_like(z)
        # Stated moments may depend on auxiliary draws.
        spread = mean.var(0, unbiased=False) + variance.mean(0)
        parts.append((mean.mean(0), spread, z))
    means, variances, draws = zip(*parts, strict=True)
    return torch.cat(means), torch.cat(variances), torch.cat(draws, 1)
