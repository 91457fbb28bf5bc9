"""Losses that see what a model makes of z through a discriminator: VAE/GAN, a GAN alone, VAE_Dis."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import pyro.poutine as poutine
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.nn.functional import softplus

from ppl_vae.objectives.alternating import Alternating, Turn, routed
from ppl_vae.objectives.base import Loss, Objective
from ppl_vae.objectives.schedules import require_bool, require_number, require_whole
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
    num_rows,
    rows_first,
    sample_rows,
    sum_to_rows,
)
from ppl_vae.runtime import described


@dataclass(frozen=True, kw_only=True)
class VAEGANLoss(Alternating):
    r"""VAE/GAN: a discriminator's features judge reconstructions, and the decoder has to fool it.

    Three losses in nats per row ("Autoencoding beyond pixels using a learned similarity metric", Larsen et al.,
    arXiv:1512.09300). With Dis_l(x) the features of the discriminator, x' the mean of p(x | z), z ~ q(z | x),
    and x'' that of p(x | z), z ~ p(z):

        like          = -log N(Dis_l(x); Dis_l(x'), I)
        encoder       = beta KL(q(z | x) || p(z)) + like
        decoder       = gamma like - log D(x') - log D(x'')
        discriminator = -log D(x) - log(1 - D(x')) - log(1 - D(x''))

    Turn `pair` moves the guide by the first and the model, but for the discriminator, by the second, in one
    pass (`routed`); turn `discriminator` moves the discriminator by the third. So the feature loss never trains
    the discriminator, and the guide never sees D. What D sees of the decoder is the mean of p(x | z), without
    noise.

    D does not say how large the noise of p(x | z) is. `OptimalGaussian` finds it from the rows, and parameters
    of `model.likelihood`, such as those of `LearnedGaussian`, are trained by the distortion, -log p(x | z),
    alone. So ELBO, rate and distortion, which are those in the space of the rows, say what this decoder costs
    in nats. A prior that learns is trained by the KL alone.

    There are two kinds of false rows, so D cannot tell them apart at D = 1/3, where its loss is
    3 log 3 - 2 log 2 = 1.91 nats. How many nats `like` has depends on the scale of the features: if the rate
    falls to 0, a smaller beta helps. Discriminators are customarily trained by Adam with betas (0.5, 0.999).

    Attributes:
        gamma: Weight of the features against D in the decoder's loss. There are as many nats in `like` as
            features, so that its right size is that of one over their number.
        saturating: The decoder minimizes log(1 - D), as the formula of the game says, in place of -log D, whose
            gradient does not vanish where D is sure.
        discriminator_lr: Learning rate of the discriminator; that of the training if None.
        discriminator_every: The discriminator is moved in each so-many-th step.

    Raises:
        PairError: The model has no `discriminator`, which maps rows to logits `(n,)` and features `(n, ...)`,
            or several observed sites; or a latent has no reparameterized sampler.
        TypeError: A setting is of another type.
        ValueError: A setting is out of its range, or free_bits is not 0.

    Example:
        >>> from ppl_vae import fit
        >>> from ppl_vae.guides import MeanField
        >>> from ppl_vae.models import VAEGAN
        >>> from ppl_vae.networks import MLP
        >>> model = VAEGAN((6,), 2, MLP((8,)), discriminator=MLP((8,)))
        >>> fitted = fit(model, MeanField((6,), 2, MLP((8,))), torch.randn(64, 6), max_epochs=1, seed=0)
        >>> sorted(name for name in fitted.history[0] if name.startswith("loss_"))
        ['loss_discriminator', 'loss_pair']
    """

    why_no_free_bits = " with adversarial losses; set free_bits=0"

    gamma: float = 0.01
    saturating: bool = False
    discriminator_lr: float | None = None
    discriminator_every: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        require_number(name, "gamma", self.gamma)
        if not 0 <= self.gamma < math.inf:
            raise ValueError(f"{name}: gamma must be finite and >= 0, got {self.gamma}")
        _require_game(self)

    @property
    def needs_reparameterized_latents(self) -> str:
        return type(self).__name__

    def resolve(self, pair: Pair, batch: Batch) -> Objective:
        _discriminator(pair, self)
        return self

    def turns(self, pair: Pair) -> Sequence[Turn]:
        """See `Alternating.turns`."""
        discriminator = _discriminator(pair, self)
        return [
            Turn("pair", self._pair, [pair.guide, *_without(pair.model, discriminator)]),
            _turn_of(discriminator, self, self._discriminator),
        ]

    def _pair(self, pair: Pair, layout: Layout, batch: Batch, beta: float) -> Loss:
        seen = _JudgedRows.by(pair, layout, batch, self)
        discriminator = _discriminator(pair, self)
        logits, like = _features(discriminator, seen)
        generated = _judged(discriminator, _generated(pair, layout, batch, detached=True))[0]
        fooled = _fooled(logits, self.saturating) + _fooled(generated, self.saturating)
        kl, distortion = seen.kl.mean(), -seen.rows.log_likelihood.mean()
        parts = _Trained.of(pair, discriminator)
        loss = routed(
            [
                (beta * kl + like, parts.encoder),
                (self.gamma * like + fooled + _gradient_of(beta * kl), parts.decoder),
                (_gradient_of(distortion), parts.noise),
            ]
        )
        return seen.loss(loss)

    def _discriminator(self, pair: Pair, layout: Layout, batch: Batch, beta: float) -> Loss:
        with torch.no_grad(), in_mode(fitted_parts(pair), False):
            seen = _JudgedRows.by(pair, layout, batch, self)
            generated = _generated(pair, layout, batch)
        return seen.loss(_seen_through(_discriminator(pair, self), seen.x, generated, seen.mean))


@dataclass(frozen=True, kw_only=True)
class GANLoss(Alternating):
    r"""A GAN: the model's draws against the rows, with no loss of the guide.

    With x'' the mean of p(x | z), z ~ p(z), in nats per row (Goodfellow et al., arXiv:1406.2661):

        generator     = -log D(x'')
        discriminator = -log D(x) - log(1 - D(x''))

    Turn `generator` moves the model without its discriminator (and its prior, if that learns), turn
    `discriminator` the discriminator. For the best D, the second is log 4 - 2 JS, where JS is the divergence of
    Jensen and Shannon between rows and draws: log 4 = 1.39 nats if they are alike.

    The guide stays as it is, and the ELBO that is logged is that of this guide: fit one afterwards with
    `refit_guide`, which leaves the model alone, so that `evaluate` can say what log p(x) is. The noise of
    p(x | z) is found from rows that the guide, still untrained, reconstructs, so it is too large. To find it
    with the guide, freeze the decoder, `model.decoder.requires_grad_(False)`, and `fit` with
    `objective=MeanFieldELBO()`.

    Attributes:
        saturating: The generator minimizes log(1 - D), as the formula of the game says, in place of -log D,
            whose gradient does not vanish where D is sure.
        discriminator_lr: Learning rate of the discriminator; that of the training if None.
        discriminator_every: The discriminator is moved in each so-many-th step.

    Raises:
        PairError: The model has no `discriminator`, or several observed sites.
        TypeError: A setting is of another type.
        ValueError: A setting is out of its range, or beta is not 1, free_bits not 0 or num_particles not 1:
            there is no KL.

    Example:
        >>> GANLoss(discriminator_lr=2e-4)  # doctest: +ELLIPSIS
        GANLoss(beta=1.0, free_bits=0.0, num_particles=1, saturating=False, discriminator_lr=0.0002, ...)
    """

    why_no_free_bits = ": a GAN has no KL; set free_bits=0"

    saturating: bool = False
    discriminator_lr: float | None = None
    discriminator_every: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("beta", self.beta), ("num_particles", self.num_particles)):
            if value != 1:
                raise ValueError(
                    f"{type(self).__name__}: there is no KL and no draw from the guide in the loss of a GAN: "
                    f"leave {name} at 1, got {value!r}"
                )
        _require_game(self)

    def resolve(self, pair: Pair, batch: Batch) -> Objective:
        _discriminator(pair, self)
        return self

    def keeps(self, pair: Pair, name: str) -> bool:
        return not pair.is_of_model(name)

    def turns(self, pair: Pair) -> Sequence[Turn]:
        """See `Alternating.turns`."""
        discriminator = _discriminator(pair, self)
        return [
            Turn("generator", self._generator, _without(pair.model, discriminator)),
            _turn_of(discriminator, self, self._discriminator),
        ]

    def _generator(self, pair: Pair, layout: Layout, batch: Batch, beta: float) -> Loss:
        discriminator = _discriminator(pair, self)
        parts = _Trained.of(pair, discriminator)
        # Statistics of batch norm are those of draws from the prior; the noise is that of reconstructions.
        with (
            torch.set_grad_enabled(bool(parts.noise) and torch.is_grad_enabled()),
            in_mode(_not_fitted(pair), False),
        ):
            seen = _JudgedRows.by(pair, layout, batch, self)
            distortion = -seen.rows.log_likelihood.mean()
        generated = _judged(discriminator, _generated(pair, layout, batch))[0]
        loss = routed(
            [
                (_fooled(generated, self.saturating), parts.decoder),
                (_gradient_of(distortion), parts.noise),
            ]
        )
        return seen.loss(loss)

    def _discriminator(self, pair: Pair, layout: Layout, batch: Batch, beta: float) -> Loss:
        with torch.no_grad():
            with in_mode([*_not_fitted(pair), *fitted_parts(pair)], False):
                seen = _JudgedRows.by(pair, layout, batch, self)
            generated = _generated(pair, layout, batch)
        return seen.loss(_seen_through(_discriminator(pair, self), seen.x, generated))


@dataclass(frozen=True, kw_only=True)
class FeatureELBO(Objective):
    r"""VAE_Dis: a VAE whose reconstructions are judged by the features of a discriminator that stays as it is.

        beta KL(q(z | x) || p(z)) - log N(Dis_l(x); Dis_l(x'), I),    x' = E[x | z], z ~ q(z | x)

    in nats per row (Larsen et al., arXiv:1512.09300). The discriminator is that of a GAN that was trained
    before (`GANLoss`), in evaluation mode; it is neither moved nor given to the optimizer. Parameters of
    `model.likelihood` are trained by the distortion alone, as `VAEGANLoss` says. It is a single loss without
    turns. On the command line, `--start_from RUN --start_parts model.discriminator` takes it from RUN.

    Raises:
        PairError: As from `VAEGANLoss`.
        ValueError: A setting is out of its range, or free_bits is not 0.

    Example:
        >>> from ppl_vae.models import VAEGAN
        >>> from ppl_vae.networks import MLP
        >>> gan = VAEGAN((6,), 2, MLP((8,)), discriminator=MLP((8,)))  # trained with objective=GANLoss()
        >>> model = VAEGAN((6,), 2, MLP((8,)), discriminator=MLP((8,)))
        >>> model.discriminator.load_state_dict(gan.discriminator.state_dict())
        <All keys matched successfully>
        >>> FeatureELBO(beta=0.5)  # for fit(model, guide, x, objective=...)
        FeatureELBO(beta=0.5, free_bits=0.0, num_particles=1)
    """

    why_no_free_bits = VAEGANLoss.why_no_free_bits

    @property
    def needs_reparameterized_latents(self) -> str:
        return type(self).__name__

    def resolve(self, pair: Pair, batch: Batch) -> Objective:
        _discriminator(pair, self)
        return self

    def keeps(self, pair: Pair, name: str) -> bool:
        own = {id(p) for p in _discriminator(pair, self).parameters()}
        return id(pair.leaves().get(name)) in own

    def __call__(self, pair: Pair, layout: Layout, batch: Batch, beta: float = 1.0) -> Loss:
        discriminator = _discriminator(pair, self)
        seen = _JudgedRows.by(pair, layout, batch, self)
        with in_mode(discriminator.modules(), False):
            _, like = _features(discriminator, seen)
        distortion = -seen.rows.log_likelihood.mean()
        parts = _Trained.of(pair, discriminator)
        loss = routed(
            [
                (beta * seen.kl.mean() + like, [*parts.encoder, *parts.decoder]),
                (_gradient_of(distortion), parts.noise),
            ]
        )
        return seen.loss(loss)


def has_discriminator(pair: Pair) -> bool:
    """Whether the model of a pair has a module `discriminator`."""
    return isinstance(getattr(pair.model, "discriminator", None), nn.Module)


def _discriminator(pair: Pair, objective: Objective) -> nn.Module:
    """The discriminator of a pair's model.

    Raises:
        PairError: There is none.
    """
    if not has_discriminator(pair):
        raise PairError(
            f"{type(objective).__name__} needs a model with a module `discriminator`, which maps rows to "
            f"logits (n,) and features (n, ...), such as VAEGAN; {described(pair.model)} has none: take that "
            "model, or ELBO, the default objective; a guide for a model that stays as it is (refit_guide) "
            "takes ELBO, too"
        )
    found: nn.Module = pair.model.discriminator  # type: ignore[attr-defined]
    return found


def _require_game(objective: VAEGANLoss | GANLoss) -> None:
    """Checks the settings that losses with a discriminator share."""
    name = type(objective).__name__
    require_bool(name, "saturating", objective.saturating)
    require_whole(name, "discriminator_every", objective.discriminator_every)
    if objective.discriminator_every < 1:
        raise ValueError(
            f"{name}: discriminator_every must be at least 1, got {objective.discriminator_every}"
        )
    if objective.discriminator_lr is None:
        return
    require_number(name, "discriminator_lr", objective.discriminator_lr)
    if not 0 <= objective.discriminator_lr < math.inf:
        raise ValueError(
            f"{name}: discriminator_lr must be finite and >= 0, got {objective.discriminator_lr}"
        )


def _turn_of(
    discriminator: nn.Module,
    objective: VAEGANLoss | GANLoss,
    loss: Callable[[Pair, Layout, Batch, float], Loss],
) -> Turn:
    """The turn of the discriminator."""
    rate = objective.discriminator_lr
    options = {} if rate is None else {"lr": rate}
    return Turn("discriminator", loss, [discriminator], objective.discriminator_every, options)


def _without(model: Any, discriminator: nn.Module) -> list[Tensor]:
    """The parameters of a model without those of its discriminator."""
    own = {id(p) for p in discriminator.parameters()}
    return [p for p in model.parameters() if id(p) not in own]


@dataclass(frozen=True)
class _Trained:
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
    def of(cls, pair: Pair, discriminator: nn.Module) -> _Trained:
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
class _JudgedRows:
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
    def by(cls, pair: Pair, layout: Layout, batch: Batch, objective: Objective) -> _JudgedRows:
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


def _generated(pair: Pair, layout: Layout, batch: Batch, detached: bool = False) -> Tensor:
    """E[x | z] of draws from the prior, one for each row, `(n, *event)`.

    Args:
        pair: The pair.
        layout: The layout of the batch.
        batch: The rows, of which the model reads the number alone.
        detached: Whether no gradient goes through z, to a prior that learns.
    """
    with in_mode(fitted_parts(pair), False), _Detached() if detached else nullcontext():
        trace = poutine.trace(pair.model).get_trace(*as_args(batch))
    return _mean(trace, layout, 1, num_rows(batch))[0]


class _Detached(Messenger):
    """Makes constants of what is drawn."""

    def _pyro_post_sample(self, msg: Site) -> None:
        if not msg["is_observed"]:
            msg["value"] = msg["value"].detach()


def _features(discriminator: nn.Module, seen: _JudgedRows) -> tuple[Tensor, Tensor]:
    """The logits of the reconstructions, and -log N(Dis_l(x); Dis_l(x'), I), the mean over rows and draws."""
    with torch.no_grad():
        target = _judged(discriminator, seen.x)[1].flatten(1)
    logits, features = _judged(discriminator, seen.mean)
    features = features.reshape(-1, *target.shape)
    squares = (features - target).square().sum(-1).mean()
    return logits, 0.5 * squares + 0.5 * math.log(2 * math.pi) * target.shape[1]


def _judged(discriminator: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """What a discriminator says of rows: logits `(n,)` and features `(n, ...)`, in float32 or wider.

    Raises:
        PairError: It returns something else.
    """
    found: Any = discriminator(x)
    n = len(x)
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
        raise PairError(
            f"the model's discriminator must return logits ({n},) and features ({n}, ...) of {n} rows, and has "
            f"returned {shapes}. If it is one of another kind, which sees z, say, take an objective that does "
            "not use it, such as MeanFieldELBO()"
        )
    logits, features = (part.to(torch.promote_types(part.dtype, torch.float32)) for part in found)
    return logits, features


def _fooled(logits: Tensor, saturating: bool) -> Tensor:
    """-log D, or log(1 - D), the mean over rows."""
    return -softplus(logits).mean() if saturating else softplus(-logits).mean()


def _seen_through(discriminator: nn.Module, x: Tensor, *false: Tensor) -> Tensor:
    """-log D(x) - sum over kinds of false rows of log(1 - D), each the mean over its rows."""
    real = _judged(discriminator, x)[0]
    others = [_judged(discriminator, each)[0] for each in false]
    count = getattr(discriminator, "count", None)
    if discriminator.training and callable(count):
        count(real.detach(), torch.cat(others).detach())
    return torch.stack([softplus(-real).mean(), *(softplus(each).mean() for each in others)]).sum()


def _gradient_of(loss: Tensor) -> Tensor:
    """0, with the gradient of a loss."""
    return loss - loss.detach()


def fitted_parts(pair: Pair) -> list[nn.Module]:
    """The parts that are fitted in training to rows and what is made of z, as the noise of a likelihood is."""
    return [part for part in _modules(pair) if getattr(part, "fitted_to_rows", False)]


def _not_fitted(pair: Pair) -> list[nn.Module]:
    """All others."""
    return [part for part in _modules(pair) if not getattr(part, "fitted_to_rows", False)]


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
