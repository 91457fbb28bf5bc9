"""Losses that see what a model makes of z through a discriminator: VAE/GAN, a GAN alone, VAE_Dis."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ppl_vae.objectives.alternating import Alternating, Turn, routed
from ppl_vae.objectives.base import Loss, Objective
from ppl_vae.objectives.judged_rows import (
    JudgedRows,
    TrainedParts,
    discriminator_of,
    draws_of,
    feature_loss,
    fitted_parts,
    fooling,
    gradient_of,
    in_mode,
    judged,
    not_fitted,
    seen_through,
    statistics_held,
)
from ppl_vae.objectives.schedules import require_bool, require_number, require_whole
from ppl_vae.pairs import (
    Batch,
    Layout,
    Pair,
)


@dataclass(frozen=True, kw_only=True)
class VAEGANLoss(Alternating):
    r"""VAE/GAN: a discriminator's features judge reconstructions, and the decoder has to fool it.

    Three losses in nats per row ("Autoencoding beyond pixels using a learned similarity metric", Larsen et al.,
    arXiv:1512.09300). With Dis_l(x) the features of the discriminator, x' the mean of p(x | z), z ~ q(z | x),
    and x'' that of p(x | z), z ~ p(z):

        like          = -log N(Dis_l(x); Dis_l(x'), sigma^2 I)
        encoder       = beta KL(q(z | x) || p(z)) + like
        decoder       = gamma like - log D(x') - log D(x'')
        discriminator = -log D(x) - log(1 - D(x')) - log(1 - D(x''))

    Turn `pair` moves the guide by the first and the model, except the discriminator, by the second, in one
    pass (`routed`); turn `discriminator` moves the discriminator by the third. So the feature loss never trains
    the discriminator, and the guide never sees D. What D sees of the decoder is the mean of p(x | z), without
    noise.

    In both turns D is shown x, x' and x'' in one pass. So batch norm in it normalizes all of them by the
    statistics of all together, and D sees brightness and contrast. What reaches encoder and decoder through
    these statistics is part of their gradients. The running statistics, for evaluation, and the vectors of
    spectral norm are those of turn `discriminator`.

    The authors' code is not the paper in all. It shows D rows and false rows in one pass, too, and x with x' in
    another one, for the features. Of faces, D judges x'' alone. Both kinds of false rows weigh as much as the
    rows, where here each does. D and decoder are moved by one pass, in opposite directions (`saturating`), and
    the one that is far ahead waits.

    D does not say how large the noise of p(x | z) is. `OptimalGaussian` finds it from the rows, and parameters
    of `model.likelihood`, such as those of `LearnedGaussian`, are trained by the distortion, -log p(x | z),
    alone. So ELBO, rate and distortion, which are those in the space of the rows, say what this decoder costs
    in nats. A prior that learns is trained by the KL alone.

    The paper has three optimizers, and here encoder and decoder share a turn, and so a group of one optimizer.
    Adam, and each optimizer that treats every number by itself, moves them as two of its kind would: `routed`
    has given each part the gradient of its own loss. What couples them is `clip_grad_norm`, by their common
    norm, and the learning rate, which is the same. A class of one's own makes two turns of it, each with its
    own rate and norm. Then both programs are run twice in a step, the decoder's turn with the encoder that has
    moved:

        @dataclass(frozen=True, kw_only=True)
        class OwnRates(VAEGANLoss):
            def turns(self, pair):
                both, discriminator = super().turns(pair)
                encoder = replace(both, name="encoder", moves=[pair.guide], options={"lr": 1e-3})
                decoder = replace(both, name="decoder", moves=[pair.model], options={"lr": 3e-4})
                return [encoder, decoder, discriminator]

    There are two kinds of false rows, so D cannot tell them apart at D = 1/3, where its loss is
    3 log 3 - 2 log 2 = 1.91 nats. Discriminators are customarily trained by Adam with betas (0.5, 0.999).

    Attributes:
        gamma: Weight of the features against D in the decoder's loss; None for 1 / F, where F is the number of
            features, `model.discriminator(x)[1][0].numel()`. As `like` is a sum over them, and D's terms vary
            by a few nats, gamma F is what counts, and 1 gives both the same scale. The authors' code has 1e-6
            for F = 16,384, gamma F = 0.016, for faces of 64 x 64.
        feature_sigma: sigma, the noise of the features; None for the best one, the root mean squared error of
            the batch, but at least a thousandth of the root mean square of the features. Then the gradients of
            `like` by encoder and decoder do not depend on the scale of the features. Its value does: features
            that are c times as large add F log c. So `loss_pair` of two epochs, between which D has changed,
            cannot be compared. The authors have 1, for features of a discriminator with batch norm, whose
            numbers are about 1. If they are smaller, 1 is so much noise that the rate falls to 0.
        saturating: The decoder minimizes log(1 - D), as the formula of the game says, in place of -log D, whose
            gradient does not vanish where D is sure.
        discriminator_lr: Learning rate of the discriminator; that of the training if None.
        discriminator_every: The discriminator is moved in every n-th step.

    Raises:
        PairError: The model has no `discriminator`, which maps rows to logits `(n,)` and features `(n, ...)`,
            or several observed sites, or masks leave out numbers of the rows; or a latent has no
            reparameterized sampler.
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
    judged_by_elbo = False

    gamma: float | None = None
    feature_sigma: float | None = None
    saturating: bool = False
    discriminator_lr: float | None = None
    discriminator_every: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        if self.gamma is not None:
            require_number(name, "gamma", self.gamma)
            if not 0 <= self.gamma < math.inf:
                raise ValueError(
                    f"{name}: gamma must be finite and >= 0, or None for 1 / number of features, got "
                    f"{self.gamma}"
                )
        _require_sigma(self)
        _require_game(self)

    @property
    def needs_reparameterized_latents(self) -> str:
        return type(self).__name__

    def resolve(self, pair: Pair, batch: Batch) -> Objective:
        discriminator_of(pair, self)
        return self

    def turns(self, pair: Pair) -> Sequence[Turn]:
        """See `Alternating.turns`."""
        discriminator = discriminator_of(pair, self)
        return [
            Turn("pair", self._pair, [pair.guide, pair.model], keeps=[discriminator]),
            _turn_of(discriminator, self, self._discriminator),
        ]

    def _pair(self, pair: Pair, layout: Layout, batch: Batch, beta: float) -> Loss:
        seen = JudgedRows.by(pair, layout, batch, self)
        discriminator = discriminator_of(pair, self)
        draws = draws_of(pair, layout, batch, detached=True)
        with statistics_held(discriminator):
            (_, target), (logits, features), (generated, _) = judged(
                discriminator, seen.x, seen.mean, draws
            )
        like = feature_loss(target, features, self.feature_sigma)
        gamma = 1 / features[0].numel() if self.gamma is None else self.gamma
        fooled = fooling(logits, self.saturating) + fooling(generated, self.saturating)
        kl, distortion = seen.kl.mean(), -seen.rows.log_likelihood.mean()
        parts = TrainedParts.of(pair, discriminator)
        loss = routed(
            [
                (beta * kl + like, parts.encoder),
                (gamma * like + fooled + gradient_of(beta * kl), parts.decoder),
                (gradient_of(distortion), parts.noise),
            ]
        )
        return seen.loss(loss)

    def _discriminator(self, pair: Pair, layout: Layout, batch: Batch, beta: float) -> Loss:
        with torch.no_grad(), in_mode(fitted_parts(pair), False):
            seen = JudgedRows.by(pair, layout, batch, self)
            generated = draws_of(pair, layout, batch)
        return seen.loss(seen_through(discriminator_of(pair, self), seen.x, seen.mean, generated))


@dataclass(frozen=True, kw_only=True)
class GANLoss(Alternating):
    r"""A GAN: the model's draws against the rows, with no loss of the guide.

    With x'' the mean of p(x | z), z ~ p(z), in nats per row (Goodfellow et al., arXiv:1406.2661):

        generator     = -log D(x'')
        discriminator = -log D(x) - log(1 - D(x''))

    Turn `generator` moves the model without its discriminator (and its prior, if that learns), turn
    `discriminator` the discriminator. In both, D is shown x and x'' at once, as `VAEGANLoss` says. For the best
    D, the second is log 4 - 2 JS, where JS is the divergence of Jensen and Shannon between rows and draws:
    log 4 = 1.39 nats if they are alike.

    The guide stays as it is, and the ELBO that is logged is that of this guide. The noise of p(x | z) is found
    from rows that the guide, still untrained, reconstructs, so it is too large. So fit both afterwards, for
    `evaluate` to say what log p(x) is: `refit_guide(model, guide, x, fit_noise=True)`, or `ppl-vae refit RUN
    --fit_noise`, changes nothing else of the model.

    Attributes:
        saturating: The generator minimizes log(1 - D), as the formula of the game says, in place of -log D,
            whose gradient does not vanish where D is sure.
        discriminator_lr: Learning rate of the discriminator; that of the training if None.
        discriminator_every: The discriminator is moved in every n-th step.

    Raises:
        PairError: The model has no `discriminator`, or several observed sites, or masks leave out numbers of
            the rows.
        TypeError: A setting is of another type.
        ValueError: A setting is out of its range, or beta is not 1, free_bits not 0 or num_particles not 1:
            there is no KL.

    Example:
        >>> GANLoss(discriminator_lr=2e-4)  # doctest: +ELLIPSIS
        GANLoss(beta=1.0, free_bits=0.0, num_particles=1, saturating=False, discriminator_lr=0.0002, ...)
    """

    why_no_free_bits = ": a GAN has no KL; set free_bits=0"
    judged_by_elbo = False

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
        discriminator_of(pair, self)
        return self

    def keeps(self, pair: Pair, name: str) -> bool:
        return not pair.is_of_model(name)

    def turns(self, pair: Pair) -> Sequence[Turn]:
        """See `Alternating.turns`."""
        discriminator = discriminator_of(pair, self)
        return [
            Turn("generator", self._generator, [pair.model], keeps=[discriminator]),
            _turn_of(discriminator, self, self._discriminator),
        ]

    def _generator(self, pair: Pair, layout: Layout, batch: Batch, beta: float) -> Loss:
        discriminator = discriminator_of(pair, self)
        parts = TrainedParts.of(pair, discriminator)
        # Statistics of batch norm are those of draws from the prior; the noise is that of reconstructions.
        with (
            torch.set_grad_enabled(bool(parts.noise) and torch.is_grad_enabled()),
            in_mode(not_fitted(pair), False),
        ):
            seen = JudgedRows.by(pair, layout, batch, self)
            distortion = -seen.rows.log_likelihood.mean()
        draws = draws_of(pair, layout, batch)
        with statistics_held(discriminator):
            _, (generated, _) = judged(discriminator, seen.x, draws)
        loss = routed(
            [
                (fooling(generated, self.saturating), parts.decoder),
                (gradient_of(distortion), parts.noise),
            ]
        )
        return seen.loss(loss)

    def _discriminator(self, pair: Pair, layout: Layout, batch: Batch, beta: float) -> Loss:
        with torch.no_grad():
            with in_mode([*not_fitted(pair), *fitted_parts(pair)], False):
                seen = JudgedRows.by(pair, layout, batch, self)
            generated = draws_of(pair, layout, batch)
        return seen.loss(seen_through(discriminator_of(pair, self), seen.x, generated))


@dataclass(frozen=True, kw_only=True)
class VAEDisLoss(Objective):
    r"""VAE_Dis: a VAE whose reconstructions are judged by the features of a discriminator that stays as it is.

        beta KL(q(z | x) || p(z)) - log N(Dis_l(x); Dis_l(x'), sigma^2 I),    x' = E[x | z], z ~ q(z | x)

    in nats per row (Larsen et al., arXiv:1512.09300). The discriminator is that of a GAN that was trained
    before (`GANLoss`), in evaluation mode; it is neither moved nor given to the optimizer. Parameters of
    `model.likelihood` are trained by the distortion alone, as `VAEGANLoss` says. It is a single loss without
    turns. On the command line, `--start_from RUN --start_parts model.discriminator` takes it from RUN.

    Attributes:
        feature_sigma: sigma, as of `VAEGANLoss`.

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
        >>> VAEDisLoss(beta=0.5)  # for fit(model, guide, x, objective=...)
        VAEDisLoss(beta=0.5, free_bits=0.0, num_particles=1, feature_sigma=None)
    """

    why_no_free_bits = VAEGANLoss.why_no_free_bits
    judged_by_elbo = False

    feature_sigma: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_sigma(self)

    @property
    def needs_reparameterized_latents(self) -> str:
        return type(self).__name__

    def resolve(self, pair: Pair, batch: Batch) -> Objective:
        discriminator_of(pair, self)
        return self

    def keeps(self, pair: Pair, name: str) -> bool:
        own = {id(p) for p in discriminator_of(pair, self).parameters()}
        return id(pair.leaves().get(name)) in own

    def __call__(self, pair: Pair, layout: Layout, batch: Batch, beta: float = 1.0) -> Loss:
        discriminator = discriminator_of(pair, self)
        seen = JudgedRows.by(pair, layout, batch, self)
        with in_mode(discriminator.modules(), False):  # so that rows are apart from each other
            with torch.no_grad():
                ((_, target),) = judged(discriminator, seen.x)
            ((_, features),) = judged(discriminator, seen.mean)
        like = feature_loss(target, features, self.feature_sigma)
        distortion = -seen.rows.log_likelihood.mean()
        parts = TrainedParts.of(pair, discriminator)
        loss = routed(
            [
                (beta * seen.kl.mean() + like, [*parts.encoder, *parts.decoder]),
                (gradient_of(distortion), parts.noise),
            ]
        )
        return seen.loss(loss)


def _require_sigma(objective: VAEGANLoss | VAEDisLoss) -> None:
    """Checks the noise of features."""
    sigma = objective.feature_sigma
    if sigma is None:
        return
    name = type(objective).__name__
    require_number(name, "feature_sigma", sigma)
    if not 0 < sigma < math.inf:
        raise ValueError(
            f"{name}: feature_sigma must be positive and finite, or None, which finds the best one, got {sigma}"
        )


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
