"""What a discriminator says of rows, of reconstructions and of draws, and what that trains."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import pyro.poutine as poutine
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from ppl_vae.objectives.base import Loss, Objective
from ppl_vae.pairs import (
    Batch,
    Layout,
    Pair,
    PairError,
    RowDensities,
    Site,
    Trace,
    as_args,
    inner_scale,
    innermost,
    is_categorical,
    kl_between,
    latent_sites,
    mask_kind,
    num_rows,
    present,
    require_proper,
    rows_first,
    sample_rows,
    sum_to_rows,
)
from ppl_vae.runtime import described


def discriminator_of(pair: Pair, objective: Objective) -> nn.Module:
    """The discriminator of a pair's model.

    Raises:
        PairError: There is none.
    """
    found = getattr(pair.model, "discriminator", None)
    if not isinstance(found, nn.Module):
        raise PairError(
            f"{type(objective).__name__} needs a model with a module `discriminator`, which maps rows to "
            f"logits (n,) and features (n, ...), such as VAEGAN; {described(pair.model)} has none: take that "
            "model, or ELBO, the default objective; a guide for a model that stays as it is (refit_guide) "
            "takes ELBO, too"
        )
    return found


@dataclass(frozen=True)
class TrainedParts:
    """The parameters that losses are routed to.

    Attributes:
        encoder: Of the guide alone.
        decoder: Of the model, without those of discriminator and noise.
        noise: Of the likelihood.
    """

    encoder: list[Tensor]
    decoder: list[Tensor]
    noise: list[Tensor]

    @classmethod
    def of(cls, pair: Pair, discriminator: nn.Module) -> TrainedParts:
        """The parts of a pair."""
        likelihood = getattr(pair.model, "likelihood", None)
        own = likelihood.parameters() if isinstance(likelihood, nn.Module) else []
        noise: list[Tensor] = [p for p in own if p.requires_grad]
        others = {id(p) for p in (*noise, *discriminator.parameters())}
        leaves = {n: p for n, p in pair.leaves().items() if id(p) not in others}
        return cls(
            [p for n, p in leaves.items() if not pair.is_of_model(n)],
            [p for n, p in leaves.items() if pair.is_of_model(n)],
            noise,
        )


@dataclass(frozen=True)
class JudgedRows:
    """A run of a pair on n rows, with K draws each.

    Attributes:
        x: The rows, `(n, *event)`.
        mean: E[x | z], `(K n, *event)`.
        kl: KL(q(z | x) || p(z)), or log q(z | x) - log p(z) if it has no formula, `(K, n)`.
        rows: Log densities.
    """

    x: Tensor
    mean: Tensor
    kl: Tensor
    rows: RowDensities

    @classmethod
    def by(cls, pair: Pair, layout: Layout, batch: Batch, objective: Objective) -> JudgedRows:
        """Runs guide and model.

        Raises:
            PairError: The pair does not suit the objective.
        """
        name, k, n = type(objective).__name__, objective.num_particles, num_rows(batch)
        if layout.enumerated or (k > 1 and not layout.vectorizes):
            what = "sums latents out" if layout.enumerated else "draws samples one after the other"
            raise PairError(
                f"{name} needs draws of z that are made at once, and this pair {what}: use ELBO"
            )
        rows = sample_rows(pair, layout, batch, k)
        if objective.needs_reparameterized_latents:
            for latent, site in latent_sites(rows.guide_trace).items():
                if not site["fn"].has_rsample:
                    kind = type(innermost(site["fn"])).__name__
                    raise PairError(
                        f"site '{latent}' is drawn from {kind}, which has no reparameterized sampler, but "
                        f"{name} needs one: draw it from a relaxed distribution, or use MeanFieldELBO or "
                        "TraceELBO"
                    )
        mean = _mean(rows.model_trace, layout, k, n)
        _require_whole(rows.model_trace.nodes[layout.observed[0]], layout.observed[0])
        x = rows_first(rows.model_trace.nodes[layout.observed[0]], layout, k, n)[0].to(mean.dtype)
        return cls(x, mean.flatten(0, 1), _kl(rows, layout, k, n), rows)

    def loss(self, loss: Tensor) -> Loss:
        """The loss, with the ELBO of the rows beside it."""
        rows = self.rows
        distortion = -rows.log_likelihood.detach().mean()
        rate = (rows.log_guide - rows.log_prior).detach().mean()
        traces = [(rows.model_trace, rows.guide_trace)]
        return Loss(loss, -(distortion + rate), rate, distortion, traces)


def _mean(trace: Trace, layout: Layout, k: int, n: int) -> Tensor:
    """E[x | z] at the site that holds the rows, `(k, n, *event)`.

    Raises:
        PairError: There are several such sites, or the distribution has no mean.
    """
    if len(layout.observed) != 1:
        names = ", ".join(f"'{name}'" for name in layout.observed)
        raise PairError(
            f"a discriminator sees one kind of rows, and the model observes {names}: observe them at one site"
        )
    site = trace.nodes[layout.observed[0]]
    fn = site["fn"]
    try:
        if is_categorical(site):  # whose mean is NaN
            raise NotImplementedError
        mean = fn.mean.expand(fn.batch_shape + fn.event_shape)
    except (NotImplementedError, AttributeError) as error:
        raise PairError(
            f"a discriminator sees the mean of p(x | z), and the distribution of site '{layout.observed[0]}', "
            f"{type(innermost(fn)).__name__}, states none: take a likelihood with a mean, such as "
            f"OptimalGaussian()"
        ) from error
    return rows_first({**site, "value": mean}, layout, k, n)


def _require_whole(site: Site, name: str) -> None:
    """Raises an error if masks leave out something of the rows, which a discriminator is shown as they are.

    Raises:
        PairError: They do.
    """
    if mask_kind(site) is not True and not bool(present(site).all()):
        raise PairError(
            f"a discriminator sees whole rows, and masks leave out numbers of site '{name}': give rows in "
            "which nothing is missing, or take an objective without a discriminator, such as MeanFieldELBO()"
        )


def _kl(rows: RowDensities, layout: Layout, k: int, n: int) -> Tensor:
    """The KL of each row: by its formula if the pair has a single latent and that has one."""
    sampled = rows.log_guide - rows.log_prior
    if len(layout.latents) != 1 or layout.guide_sites != layout.latents:
        return sampled
    (name,) = layout.latents
    q, p = rows.guide_trace.nodes[name], rows.model_trace.nodes[name]
    if any(site["mask"] not in (None, True) for site in (q, p)):
        return sampled
    try:
        kl = kl_between(q["fn"], p["fn"])
    except NotImplementedError:
        return sampled
    return inner_scale(q, layout) * sum_to_rows(kl, layout, k, n)


def draws_of(pair: Pair, layout: Layout, batch: Batch, detached: bool = False) -> Tensor:
    """E[x | z] of draws from the prior, one for each row, `(n, *event)`.

    Args:
        pair: The pair.
        layout: The layout of the batch.
        batch: The rows, of which the model reads the number alone.
        detached: Whether no gradient goes through z, to a prior that learns.
    """
    require_proper(layout, "a loss of draws", pair.model, trained=False)
    with in_mode(fitted_parts(pair), False), _Detached() if detached else nullcontext():
        trace = poutine.trace(pair.model).get_trace(*as_args(batch))
    return _mean(trace, layout, 1, num_rows(batch))[0]


class _Detached(Messenger):
    """Makes constants of what is drawn."""

    def _pyro_post_sample(self, msg: Site) -> None:
        if not msg["is_observed"]:
            msg["value"] = msg["value"].detach()


def judged(discriminator: nn.Module, *kinds: Tensor) -> list[tuple[Tensor, Tensor]]:
    """What a discriminator says of several kinds of rows, which it is shown at once.

    Apart from each other, batch norm would give all kinds the same mean and variance.

    Args:
        discriminator: The discriminator.
        kinds: Rows of each kind, `(n, *event)`.

    Returns:
        For each kind, logits `(n,)` and features `(n, ...)`, in float32 or wider.

    Raises:
        PairError: It returns something else.
    """
    found: Any = discriminator(torch.cat(kinds))
    sizes = [len(x) for x in kinds]
    n = sum(sizes)
    if (
        not isinstance(found, tuple)
        or len(found) != 2
        or not all(isinstance(part, Tensor) and part.shape[:1] == (n,) for part in found)
        or found[0].dim() != 1
    ):
        shapes = (
            [tuple(p.shape) if isinstance(p, Tensor) else described(p) for p in found]
            if isinstance(found, tuple)
            else described(found)
        )
        several = f" ({' + '.join(map(str, sizes))} at once)" if len(sizes) > 1 else ""
        raise PairError(
            f"the model's discriminator must return logits ({n},) and features ({n}, ...) of {n} rows"
            f"{several}, and has returned {shapes}. If it is one of another kind, which sees z, say, take an "
            "objective that does not use it, such as MeanFieldELBO()"
        )
    logits, features = (part.to(torch.promote_types(part.dtype, torch.float32)) for part in found)
    return list(zip(logits.split(sizes), features.split(sizes), strict=True))


def feature_loss(target: Tensor, features: Tensor, sigma: float | None) -> Tensor:
    """-log N(Dis_l(x); Dis_l(x'), sigma^2 I), the mean over rows and draws.

    Args:
        target: Features of n rows, `(n, ...)`.
        features: Those of their reconstructions, K of each, `(K n, ...)`.
        sigma: The standard deviation; None for that with the least loss, the root mean squared error, but no
            less than a thousandth of the root mean square of the target: the gradient has a bound then.
    """
    target = target.flatten(1)
    count = target.shape[1]
    error = (features.reshape(-1, *target.shape) - target).square().mean()
    if sigma is None:
        least = 1e-6 * target.detach().square().mean()
        # Of features that are all 0, which have no size, nothing may become infinite in float32 either.
        variance = torch.maximum(error, least.clamp(min=1e-30))
        return 0.5 * count * (error / variance + (2 * math.pi * variance).log())
    return 0.5 * count * (error / sigma**2 + math.log(2 * math.pi * sigma**2))


def fooling(logits: Tensor, saturating: bool) -> Tensor:
    """-log D, or log(1 - D), the mean over rows."""
    return -softplus(logits).mean() if saturating else softplus(-logits).mean()


def seen_through(discriminator: nn.Module, x: Tensor, *false: Tensor) -> Tensor:
    """-log D(x) - sum over kinds of false rows of log(1 - D), each the mean over its rows.

    A discriminator in training that has `count` is told the logits, less those of the best D if nothing told
    rows apart, D = 1 / (1 + kinds of false rows): so a row counts as told right if D is on its side of that.
    """
    real, *others = (logits for logits, _ in judged(discriminator, x, *false))
    count = getattr(discriminator, "count", None)
    if discriminator.training and callable(count):
        chance = -math.log(len(others))
        count(real.detach() - chance, torch.cat(others).detach() - chance)
    return torch.stack([softplus(-real).mean(), *(softplus(each).mean() for each in others)]).sum()


def gradient_of(loss: Tensor) -> Tensor:
    """0, with the gradient of a loss."""
    return loss - loss.detach()


def fitted_parts(pair: Pair) -> list[nn.Module]:
    """The parts that are fitted in training to rows and what is made of z, as the noise of a likelihood is."""
    return [part for part in _modules(pair) if _is_fitted(part)]


def not_fitted(pair: Pair) -> list[nn.Module]:
    """All others."""
    return [part for part in _modules(pair) if not _is_fitted(part)]


def _is_fitted(part: nn.Module) -> bool:
    return getattr(part, "fitted_to_rows", False) is True


def _modules(pair: Pair) -> Iterator[nn.Module]:
    """The modules of a pair, with those inside of them."""
    return (part for root in pair.modules().values() for part in root.modules())


@contextmanager
def in_mode(modules: Iterator[nn.Module] | Sequence[nn.Module], mode: bool) -> Iterator[None]:
    """Some modules in training or evaluation mode, each by itself, and back afterwards."""
    before = [(module, module.training) for module in modules]
    for module, _ in before:
        module.training = mode
    try:
        yield
    finally:
        for module, was in before:
            module.training = was


@contextmanager
def statistics_held(module: nn.Module) -> Iterator[None]:
    """What a module in training mode remembers of a pass, it does not remember.

    Batch norm normalizes by the rows that it is shown, and keeps its averages; spectral norm divides by the
    norm that it has, and keeps its vectors.
    """
    norms = [part for part in module.modules() if isinstance(part, _NormBase) and part.training]
    before = [(norm, norm.track_running_stats, norm.momentum) for norm in norms]
    for norm in norms:
        norm.track_running_stats = False
        norm.momentum = 0.0  # instance norm does not ask for the flag
    spectral = [part for part in module.modules() if _has_spectral_norm(part)]
    try:
        with in_mode(spectral, False):  # which leaves out the power iteration, and nothing else
            yield
    finally:
        for norm, tracked, momentum in before:
            norm.track_running_stats, norm.momentum = tracked, momentum


def _has_spectral_norm(part: nn.Module) -> bool:
    """Whether a module is a parametrization by spectral norm, or a layer that has the older one, a hook."""
    hooks = part._forward_pre_hooks.values()
    return isinstance(part, _SpectralNorm) or any(isinstance(hook, SpectralNorm) for hook in hooks)
