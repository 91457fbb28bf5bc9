"""VAE/GAN, GAN and VAE_Dis: which loss reaches what, what the discriminator sees, and what it comes to."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import catalogue
import pyro
import pyro.distributions as dist
import pytest
import torch
from ranks import Ranks
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from torch.nn.utils import parametrizations
from trainings import same, weights

from ppl_vae import evaluate, fit, load_run, refit_guide
from ppl_vae.capture import CapturedLoss
from ppl_vae.cli import main
from ppl_vae.cli.reached import fit_of
from ppl_vae.guides import MeanField
from ppl_vae.likelihoods import Categorical, LearnedGaussian
from ppl_vae.models import VAE, VAEGAN, DiagonalNormal, Discriminator
from ppl_vae.networks import MLP, Convolutional
from ppl_vae.objectives import (
    ELBO,
    Alternating,
    GANLoss,
    Loss,
    MeanFieldELBO,
    Objective,
    TraceELBO,
    Turn,
    VAEDisLoss,
    VAEGANLoss,
)
from ppl_vae.objectives.judged_rows import feature_loss, seen_through
from ppl_vae.pairs import Pair, PairError, find_layout
from ppl_vae.runs import read_history
from ppl_vae.runtime import make_fabric

D, N = 5, 12
X = torch.rand(N, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
NET = MLP((6,), activation=nn.Tanh)


def pair(**settings: Any) -> tuple[VAEGAN, MeanField]:
    """Two latent numbers and five observed ones, with a discriminator of six features, in double precision."""
    torch.manual_seed(0)
    model = VAEGAN((D,), 2, NET, discriminator=NET, **settings).double()
    return model, MeanField((D,), 2, NET).double()


def lost(
    model: Any,
    guide: Any,
    objective: Objective,
    turn: str | None = None,
    x: Tensor = X,
    seed: int = 5,
) -> Loss:
    """The loss of an objective, or of one of its turns, by these random numbers."""
    both = Pair(model, guide)
    with both.scope():
        layout = find_layout(both, x)
        call: Any = objective
        if turn is not None:
            assert isinstance(objective, Alternating)
            (call,) = (each.loss for each in objective.turns(both) if each.name == turn)
        torch.manual_seed(seed)
        found: Loss = call(both, layout, x, 0.7)
    return found


def gradients(loss: Tensor, *modules: nn.Module) -> list[Tensor | None]:
    """By all parameters of modules; None where it does not depend on one."""
    parameters = [p for module in modules for p in module.parameters()]
    return list(torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True))


def same_gradients(found: Sequence[Tensor | None], expected: Sequence[Tensor | None]) -> None:
    for mine, truth in zip(found, expected, strict=True):
        assert (mine is None) == (truth is None)
        if mine is not None and truth is not None:
            torch.testing.assert_close(mine, truth, rtol=1e-10, atol=1e-13)


each_turn = pytest.mark.parametrize(
    ("objective", "turn"),
    [
        (VAEGANLoss(), "pair"),
        (VAEGANLoss(), "discriminator"),
        (GANLoss(), "generator"),
        (GANLoss(), "discriminator"),
        (VAEDisLoss(), None),
    ],
)


class ByHand:
    """The terms of Larsen's losses, from the formulas, at the draws of `lost`."""

    def __init__(
        self,
        model: VAEGAN,
        guide: MeanField,
        x: Tensor = X,
        seed: int = 5,
        sigma: float | Tensor | None = None,
    ) -> None:
        torch.manual_seed(seed)
        eps, of_prior = (torch.normal(torch.zeros(len(x), 2, dtype=x.dtype), 1.0) for _ in range(2))
        q = guide.encode(x).base_dist
        z = q.loc + q.scale * eps
        self.kl = (0.5 * (q.loc**2 + q.scale**2 - 1) - q.scale.log()).sum(-1).mean()
        self.mean, self.generated = model.decoder(z)[:, 0], model.decoder(of_prior)[:, 0]
        features = [model.discriminator.trunk(each) for each in (x, self.mean)]
        if sigma is None:
            sigma = (features[0].detach() - features[1]).square().mean().sqrt()
        of_features = torch.distributions.Normal(features[1], sigma)
        self.like = -of_features.log_prob(features[0].detach()).sum(-1).mean()
        judge = model.discriminator
        self.real, self.of_mean, self.of_prior = (
            judge.head(judge.trunk(each))[:, 0] for each in (x, self.mean, self.generated)
        )


# -- optimizers ------------------------------------------------------------------------------------------


class Recorded(torch.optim.Adam):
    """Adam that keeps the gradients of each of its steps, by the places of the parameters."""

    def __init__(self, parameters: Any, **settings: Any) -> None:
        super().__init__(parameters, **settings)
        self.leaves = [p for group in self.param_groups for p in group["params"]]
        self.seen: list[list[Tensor | None]] = []

    def step(self, closure: Any = None) -> Any:
        self.seen.append([None if p.grad is None else p.grad.clone() for p in self.leaves])
        return super().step(closure)


def parts_of(model: VAEGAN, guide: nn.Module) -> dict[str, list[Tensor]]:
    judge = {id(p) for p in model.discriminator.parameters()}
    return {
        "encoder": [*guide.parameters()],
        "decoder": [p for p in model.parameters() if id(p) not in judge],
        "discriminator": [*model.discriminator.parameters()],
    }


def recorded(
    objective: Objective, **options: Any
) -> tuple[dict[str, list[Tensor]], dict[str, list[Tensor]], Recorded]:
    """The parameters of each part before and after a training, and its optimizer."""
    model, guide = pair()
    before = {
        name: [p.detach().clone() for p in part] for name, part in parts_of(model, guide).items()
    }
    made: list[Recorded] = []

    def make(parameters: Any, **settings: Any) -> Recorded:
        made.append(Recorded(parameters, **settings))
        return made[0]

    options = {"batch_size": 4, "max_epochs": 3, "learning_rate": 0.02, "seed": 0} | options
    fit(model, guide, X, objective=objective, optimizer=make, progress=False, **options)
    return before, parts_of(model, guide), made[0]


def test_encoder_and_decoder_move_as_by_optimizers_of_their_own() -> None:
    """Three objects of Adam, given the gradients that `fit` has found, make the same steps bit by bit."""
    before, after, optimizer = recorded(VAEGANLoss())
    assert len(optimizer.seen) > 6
    place = {id(p): number for number, p in enumerate(optimizer.leaves)}
    for name, copies in before.items():
        leaves = [copy.requires_grad_() for copy in copies]
        own = torch.optim.Adam(leaves, lr=0.02)
        for gradients_of_step in optimizer.seen:
            for leaf, trained in zip(leaves, after[name], strict=True):
                leaf.grad = gradients_of_step[place[id(trained)]]
            own.step()
        for leaf, trained in zip(leaves, after[name], strict=True):
            assert torch.equal(leaf, trained), name


def test_clipping_couples_encoder_and_decoder() -> None:
    """Their common norm is that bound, neither's own one is."""
    _, after, optimizer = recorded(VAEGANLoss(), clip_grad_norm=1e-3)
    place = {id(p): number for number, p in enumerate(optimizer.leaves)}
    first = optimizer.seen[0]

    def square(part: str) -> float:
        found = [first[place[id(p)]] for p in after[part]]
        return sum(float(gradient.square().sum()) for gradient in found if gradient is not None)

    encoder, decoder = square("encoder"), square("decoder")
    assert math.sqrt(encoder + decoder) == pytest.approx(1e-3, rel=1e-3)
    assert max(encoder, decoder) < 0.999e-6
    assert square("discriminator") == 0


@dataclass(frozen=True, kw_only=True)
class OwnRates(VAEGANLoss):
    """The class of the documentation."""

    def turns(self, pair: Pair) -> Sequence[Turn]:
        both, discriminator = super().turns(pair)
        encoder = replace(both, name="encoder", moves=[pair.guide], options={"lr": 1e-3})
        decoder = replace(both, name="decoder", moves=[pair.model], options={"lr": 3e-4})
        return [encoder, decoder, discriminator]


def test_encoder_and_decoder_may_have_rates_of_their_own() -> None:
    one = {"batch_size": len(X), "max_epochs": 1}
    before, after, optimizer = recorded(OwnRates(discriminator_lr=5e-3), **one)
    for name, rate in (("encoder", 1e-3), ("decoder", 3e-4), ("discriminator", 5e-3)):
        # The first step of Adam is as long as its rate, wherever there is a gradient.
        both = zip(before[name], after[name], strict=True)
        moved = [(b.detach() - a).abs().max() for a, b in both]
        assert max(map(float, moved)) == pytest.approx(rate, rel=1e-2), name
    assert len(optimizer.seen) == 3
    # The encoder's turn comes first: it is moved as by the one turn with that rate.
    _, usual, _ = recorded(VAEGANLoss(), **one | {"learning_rate": 1e-3})
    for own, other in zip(after["encoder"], usual["encoder"], strict=True):
        assert torch.equal(own, other)
    # Each is clipped by its own norm.
    _, after, optimizer = recorded(OwnRates(), **one, clip_grad_norm=1e-3)
    for gradients_of_turn in optimizer.seen[:2]:
        norm = torch.stack([g.norm() for g in gradients_of_turn if g is not None]).norm()
        assert float(norm) == pytest.approx(1e-3, rel=1e-3)


# -- which loss reaches what -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("saturating", "sigma", "given"),
    [(False, 1.0, 0.3), (True, 0.5, 0.3), (False, None, 0.3), (False, None, None)],
)
def test_the_losses_of_a_vae_gan_reach_what_larsen_says(
    saturating: bool, sigma: float | None, given: float | None
) -> None:
    """Zeros where he says zero, and elsewhere the gradients of the formulas, to 1e-10."""
    model, guide = pair()
    objective = VAEGANLoss(gamma=given, saturating=saturating, feature_sigma=sigma)
    gamma = 1 / 6 if given is None else given
    loss = lost(model, guide, objective, "pair")
    hand = ByHand(model, guide, sigma=sigma)
    fooled = torch.stack(
        [
            logsigmoid(-each).mean() if saturating else -logsigmoid(each).mean()
            for each in (hand.of_mean, hand.of_prior)
        ]
    ).sum()
    encoder, decoder = 0.7 * hand.kl + hand.like, gamma * hand.like + fooled
    torch.testing.assert_close(loss.loss, (encoder + decoder).detach())
    same_gradients(gradients(loss.loss, guide), gradients(encoder, guide))
    same_gradients(gradients(loss.loss, model.decoder), gradients(decoder, model.decoder))
    assert gradients(loss.loss, model.discriminator) == [None] * 4
    # The formulas themselves would reach the discriminator, and the guide through D.
    assert all(g is not None for g in gradients(decoder, model.discriminator))
    assert all(g is not None and bool(g.any()) for g in gradients(fooled, guide))

    loss = lost(model, guide, objective, "discriminator")
    game = -(logsigmoid(hand.real) + logsigmoid(-hand.of_mean) + logsigmoid(-hand.of_prior)).mean()
    torch.testing.assert_close(loss.loss, game)
    same_gradients(gradients(loss.loss, model.discriminator), gradients(game, model.discriminator))
    assert not any(g is not None for g in gradients(loss.loss, model.decoder, guide))


def test_the_losses_of_a_gan() -> None:
    model, guide = pair()
    loss = lost(model, guide, GANLoss(), "generator")
    hand = ByHand(model, guide)
    fooled = -logsigmoid(hand.of_prior).mean()
    torch.testing.assert_close(loss.loss, fooled.detach())
    same_gradients(gradients(loss.loss, model.decoder), gradients(fooled, model.decoder))
    assert not any(g is not None for g in gradients(loss.loss, model.discriminator, guide))
    loss = lost(model, guide, GANLoss(), "discriminator")
    game = -(logsigmoid(hand.real) + logsigmoid(-hand.of_prior)).mean()
    torch.testing.assert_close(loss.loss, game)
    same_gradients(gradients(loss.loss, model.discriminator), gradients(game, model.discriminator))


@pytest.mark.parametrize("sigma", [1.0, 0.5, None])
def test_the_loss_of_vae_dis(sigma: float | None) -> None:
    model, guide = pair()
    loss = lost(model, guide, VAEDisLoss(feature_sigma=sigma))
    hand = ByHand(model, guide, sigma=sigma)
    total = 0.7 * hand.kl + hand.like
    torch.testing.assert_close(loss.loss, total.detach())
    same_gradients(
        gradients(loss.loss, guide, model.decoder), gradients(total, guide, model.decoder)
    )
    assert gradients(loss.loss, model.discriminator) == [None] * 4


@pytest.mark.parametrize(
    ("objective", "turn"),
    [(VAEGANLoss(), "pair"), (GANLoss(), "generator"), (VAEDisLoss(), None)],
)
def test_noise_is_trained_by_the_distortion_and_a_prior_by_the_kl(
    objective: Objective, turn: str | None
) -> None:
    model, guide = pair(likelihood=LearnedGaussian(0.3), prior=DiagonalNormal())
    loss = lost(model, guide, objective, turn)
    (noise,) = gradients(loss.loss, model.likelihood)
    rows = X.shape[0]
    p = loss.traces[0][0].nodes["x"]
    with (
        torch.no_grad()
    ):  # d/d log sigma of -log N(x; m, sigma^2) is 1 - (x - m)^2 / sigma^2 of each number
        by_hand = D - ((X - p["fn"].mean).square().sum() / rows / 0.3**2)
    assert noise is not None
    torch.testing.assert_close(noise, by_hand)
    prior = gradients(loss.loss, model.prior)
    if turn == "generator":
        assert all(g is not None and bool(g.any()) for g in prior)  # a part of what generates
        return
    z, q = loss.traces[0][1].nodes["z"], model.prior()
    kl = torch.distributions.kl_divergence(z["fn"], q).mean()
    same_gradients(prior, gradients(0.7 * kl, model.prior))


@pytest.mark.parametrize("gamma", [0.3, None])
def test_the_best_noise_of_features_has_the_least_loss_and_no_scale(gamma: float | None) -> None:
    model, guide = pair()
    best = ByHand(model, guide, sigma=None)
    assert all(ByHand(model, guide, sigma=s).like > best.like for s in (0.05, 0.1, 0.2, 0.5, 1.0))
    objective = VAEGANLoss(feature_sigma=None, gamma=gamma)
    loss = lost(model, guide, objective, "pair")
    found = gradients(loss.loss, guide, model.decoder)
    last: Any = model.discriminator
    forward = last.forward

    def larger(x: Tensor) -> tuple[Tensor, Tensor]:
        logits, features = forward(x)
        return logits, 100 * features

    last.forward = larger
    scaled = lost(model, guide, objective, "pair").loss
    same_gradients(gradients(scaled, guide, model.decoder), found)
    share = 1 + (
        1 / 6 if gamma is None else gamma
    )  # of `like` in the losses of encoder and decoder
    torch.testing.assert_close(scaled - loss.loss, scaled.new_tensor(share * 6 * math.log(100)))
    last.forward = lambda x: (forward(x)[0], 0 * forward(x)[1])  # features that are dead
    dead = lost(model, guide, objective, "pair")
    assert dead.loss.isfinite()
    assert all(g is None or g.isfinite().all() for g in gradients(dead.loss, guide))


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e6])
def test_the_best_noise_is_no_less_than_a_thousandth_of_the_features(scale: float) -> None:
    """Below, the loss is that of the least noise: its gradient has a bound, where it would have a pole."""
    generator = torch.Generator().manual_seed(0)
    target = scale * torch.randn(4, 3, generator=generator)
    least = 1e-3 * target.square().mean().sqrt()
    for near in (1e-2, 1.0):  # of the least noise: below it, and above
        away = 3 * near * least * torch.randn(8, 3, generator=generator)
        features = (target.repeat(2, 1) + away).requires_grad_()
        error = (features.reshape(2, 4, 3) - target).detach().square().mean().sqrt()
        assert (error < least) == (near < 1)
        noise = torch.maximum(error, least)
        expected = -torch.distributions.Normal(features, noise).log_prob(target.repeat(2, 1))
        expected = expected.sum(-1).mean()
        found = feature_loss(target, features, None)
        torch.testing.assert_close(found, expected)
        (mine,) = torch.autograd.grad(found, features)
        (truth,) = torch.autograd.grad(expected, features)
        torch.testing.assert_close(mine * scale, truth * scale, rtol=1e-4, atol=1e-4)
    features = torch.zeros(4, 20_000, requires_grad=True)  # dead ones
    (dead,) = torch.autograd.grad(feature_loss(torch.zeros(4, 20_000), features, None), features)
    assert not dead.any()


def test_gamma_is_one_over_the_number_of_features_of_pictures() -> None:
    """Of features (C, H, W) it is 1 / (C H W), and not 1 / C."""
    x = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    network = Convolutional((3,), 4, batch_norm=False)
    torch.manual_seed(0)
    model = VAEGAN((1, 4, 4), 2, NET, discriminator=network, feature_layer=1).double()
    guide = MeanField((1, 4, 4), 2, NET).double()
    assert model.discriminator(x)[1].shape == (6, 3, 2, 2)
    by_default, by_all, by_channels = (
        gradients(lost(model, guide, VAEGANLoss(gamma=gamma), "pair", x).loss, model.decoder)
        for gamma in (None, 1 / 12, 1 / 3)
    )
    same_gradients(by_default, by_all)
    with pytest.raises(AssertionError):
        same_gradients(by_default, by_channels)


class OfFeatures(nn.Module):
    """z ~ N(0, 1), x ~ N(z, 0.1^2), whose discriminator has the feature c x."""

    def __init__(self, c: float) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1))
        self.discriminator = Feature(c)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.shift + z, 0.1).to_event(1), obs=x)


class Feature(nn.Module):
    def __init__(self, c: float) -> None:
        super().__init__()
        self.c, self.weight = c, nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return (self.weight * x)[:, 0], self.c * x


@pytest.mark.parametrize("c", [1.0, 1e-3])
def test_small_features_leave_the_encoder_nothing_to_gain_if_their_noise_is_1(c: float) -> None:
    """A linear pair, from q(z | x) = p(z) on, with x' = z: the KL has no gradient there, and by the slope of
    the guide, z ~ N(slope x, 1), that of `like` is -c^2 E (x - z) x / sigma^2.

    With the noise that is found, c^2 E (x - z)^2, it is -E (x - z) x / E (x - z)^2, whatever c is.
    """
    x = torch.randn(500, 1, generator=torch.Generator().manual_seed(0))
    for sigma in (1.0, None):
        model, guide = OfFeatures(c), Latent()
        guide.slope.data.zero_()
        found = lost(model, guide, VAEGANLoss(feature_sigma=sigma), "pair", x)
        (gradient,) = gradients(found.loss, guide)
        z = found.traces[0][1].nodes["z"]["value"].detach()
        slope = -((x - z) * x).mean()
        expected = slope * c**2 if sigma else slope / (x - z).square().mean()
        assert gradient is not None
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-8)
        assert (abs(float(gradient)) < 1e-4) == (sigma == 1.0 and c < 1)


@pytest.mark.parametrize("sigma", [1.0, None])
def test_several_draws_are_averaged(sigma: float | None) -> None:
    """Three draws in one pass: the losses are means over all of them, each with its own features."""
    model, guide = pair()
    objective = VAEGANLoss(num_particles=3, gamma=0.3, feature_sigma=sigma)
    found = lost(model, guide, objective, "pair")
    z = found.traces[0][1].nodes["z"]["value"]
    assert z.shape == (3, N, 2)
    with torch.no_grad():
        means = model.decoder(z)[:, :, 0]
        torch.manual_seed(5)
        torch.normal(torch.zeros(3, N, 2, dtype=X.dtype), 1.0)
        generated = model.decoder(torch.normal(torch.zeros(N, 2, dtype=X.dtype), 1.0))[:, 0]
        kl = ByHand(model, guide).kl
        target = model.discriminator.trunk(X)
        logits, features = model.discriminator(means)
        noise = (features - target).square().mean().sqrt() if sigma is None else X.new_tensor(1.0)
        like = -torch.distributions.Normal(features, noise).log_prob(target).sum(-1).mean()
        fooled = -logsigmoid(logits).mean() - logsigmoid(model.discriminator(generated)[0]).mean()
    torch.testing.assert_close(found.loss.detach(), 0.7 * kl + 1.3 * like + fooled)


def test_a_kl_without_a_formula_is_drawn() -> None:
    """With a flow as the guide: log q(z | x) - log p(z) at the draws."""
    model, _ = pair()
    torch.manual_seed(1)
    guide = catalogue.AMORTIZED["NeuralSpline"]((D,), 2, NET).double()
    found = lost(model, guide, VAEDisLoss(feature_sigma=1.0))
    q, p = (found.traces[0][i].nodes["z"] for i in (1, 0))
    kl = (q["fn"].log_prob(q["value"]) - p["fn"].log_prob(p["value"])).mean()
    torch.testing.assert_close(found.rate, kl.detach())
    like = found.loss - 0.7 * kl
    mean = found.traces[0][0].nodes["x"]["fn"].mean
    with torch.no_grad():
        _, features = model.discriminator(mean)
        target = model.discriminator(X)[1]
    squares = 0.5 * (features - target).square().sum(-1).mean()
    torch.testing.assert_close(like.detach(), squares + 3 * math.log(2 * math.pi))


@cache
def as_it_is() -> tuple[VAEGAN, MeanField, float]:
    """A pair whose noise stays as it is, and its ELBO by `evaluate`."""
    model, guide = pair()
    model.likelihood.load_state_dict({"variance": torch.tensor(0.04), "batches": torch.tensor(5)})
    for part in (*model.modules(), *guide.modules()):
        part.eval()
        vars(part)["fitted_to_rows"] = False
    return (
        model,
        guide,
        evaluate(model, guide, X, num_samples=400, seed=0, method="guide").elbo.mean,
    )


@each_turn
def test_the_elbo_is_that_of_the_rows(objective: Objective, turn: str | None) -> None:
    """At the same draws, ELBO, rate and distortion are those of the ELBO by Pyro, and of `evaluate`."""
    model, guide, expected_elbo = as_it_is()
    found = lost(model, guide, objective, turn)
    expected = lost(model, guide, TraceELBO())
    for name in ("elbo", "rate", "distortion"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    x = X.repeat(50, 1)
    each = torch.stack([lost(model, guide, objective, turn, x, seed).elbo for seed in range(5)])
    assert float(each.mean()) == pytest.approx(expected_elbo, abs=5 * float(each.std()))


# -- what the discriminator sees -------------------------------------------------------------------------


class Spy(nn.Module):
    """Keeps the rows that a discriminator is shown."""

    def __init__(self, judge: nn.Module) -> None:
        super().__init__()
        self.judge = judge
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Any:
        self.seen.append(x.detach().clone())
        return self.judge(x)


def test_the_discriminator_sees_rows_reconstructions_and_draws() -> None:
    model, guide = pair()
    model.discriminator = spy = Spy(model.discriminator)  # type: ignore[assignment]
    objective = VAEGANLoss(discriminator_every=2)
    fit(
        model, guide, X, objective=objective, batch_size=N, max_epochs=3, learning_rate=1e-9, seed=0
    )
    assert all(rows.shape == (3 * N, D) for rows in spy.seen)
    order = X.sort(0).values
    for rows in spy.seen[-5:]:  # three steps, and D moves in the first and the last
        kinds = [torch.equal(part.sort(0).values, order) for part in rows.split(N)]
        assert kinds == [True, False, False]
    means = [rows.split(N)[1] for rows in spy.seen[-5:]]
    assert not torch.equal(means[0], means[1])  # another turn, another draw


def test_the_discriminators_turn_sees_the_means_of_both_kinds_of_latents() -> None:
    model, guide = pair()
    hand = ByHand(model, guide)
    model.discriminator = spy = Spy(model.discriminator)  # type: ignore[assignment]
    lost(model, guide, VAEGANLoss(), "discriminator")
    (seen,) = spy.seen
    for found, expected in zip(seen.split(N), (X, hand.mean, hand.generated), strict=True):
        torch.testing.assert_close(found, expected.detach())
    spy.seen.clear()
    lost(model, guide, GANLoss(), "discriminator")
    (seen,) = spy.seen
    for found, expected in zip(seen.split(N), (X, hand.generated), strict=True):
        torch.testing.assert_close(found, expected.detach())


def test_noise_is_fitted_to_reconstructions_and_never_to_draws_from_the_prior() -> None:
    model, guide = pair()
    for turn, number in (("pair", 1), ("discriminator", 1)):
        lost(model, guide, VAEGANLoss(), turn)
        assert model.likelihood.batches == number
    mean = ByHand(model, guide).mean
    torch.testing.assert_close(model.likelihood.variance, (X - mean).square().mean().detach())


def test_batch_norm_of_a_gan_is_that_of_its_draws() -> None:
    """The guide, which is not trained, reconstructs with the statistics as they are, and adds nothing."""
    torch.manual_seed(0)
    network, x = Convolutional((4, 6), 6), torch.rand(8, 1, 4, 4)
    model = VAEGAN((1, 4, 4), 2, network, discriminator=network)
    guide = MeanField((1, 4, 4), 2, network)
    (norm,) = (m for m in model.decoder.modules() if isinstance(m, nn.BatchNorm2d))
    inputs: list[Tensor] = []
    norm.register_forward_hook(
        lambda m, given, out: inputs.append(given[0]) if m.training else None
    )
    lost(model, guide, GANLoss(), "generator", x)
    (seen,) = inputs
    torch.testing.assert_close(norm.running_mean, 0.1 * seen.mean((0, 2, 3)).detach())
    assert model.likelihood.batches == 1  # the noise is of reconstructions


# -- batch norm in the discriminator ---------------------------------------------------------------------


def normed(norm: nn.Module | None = None) -> tuple[VAEGAN, MeanField]:
    """`pair` with a normalization before the activation of its discriminator."""
    model, guide = pair()
    net: Any = model.discriminator.trunk.net
    norm = nn.BatchNorm1d(6) if norm is None else norm
    model.discriminator.trunk = nn.Sequential(net[0], norm, nn.Tanh()).double()
    if isinstance(norm, nn.BatchNorm1d):
        torch.manual_seed(2)
        for parameter in norm.parameters():
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model, guide


def by_formula(model: VAEGAN, *kinds: Tensor) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Logits and features of kinds of rows that are normalized together, and what is normalized."""
    trunk: Any = model.discriminator.trunk
    linear, norm, _ = trunk
    h = torch.cat(kinds) @ linear.weight.T + linear.bias
    mean = h.mean(0)
    variance = (h - mean).square().mean(0)
    features = torch.tanh((h - mean) / (variance + 1e-5).sqrt() * norm.weight + norm.bias)
    logits = features @ model.discriminator.head.weight[0] + model.discriminator.head.bias
    sizes = [len(kind) for kind in kinds]
    return list(zip(logits.split(sizes), features.split(sizes), strict=True)), h


def buffers(model: VAEGAN) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.discriminator.named_buffers()}


def require_moved_once(model: VAEGAN, before: dict[str, Tensor], h: Tensor) -> None:
    """Statistics are as after one pass of what is normalized."""
    after, old = buffers(model), before["trunk.1.running_mean"]
    torch.testing.assert_close(after["trunk.1.running_mean"], 0.9 * old + 0.1 * h.mean(0).detach())
    var, old = h.var(0).detach(), before["trunk.1.running_var"]
    torch.testing.assert_close(after["trunk.1.running_var"], 0.9 * old + 0.1 * var)
    assert after["trunk.1.num_batches_tracked"] == before["trunk.1.num_batches_tracked"] + 1


@pytest.mark.parametrize("draws", [1, 3])
def test_batch_norm_sees_all_kinds_of_a_vae_gan_together(draws: int) -> None:
    """Losses, gradients and statistics of both turns are those of the formulas, for one pass."""
    model, guide = normed()
    objective = VAEGANLoss(gamma=0.3, num_particles=draws, feature_sigma=1.0)
    before = buffers(model)
    loss = lost(model, guide, objective, "pair")
    after = buffers(model)
    assert all(torch.equal(value, after[name]) for name, value in before.items())

    torch.manual_seed(5)
    shape = (N, 2) if draws == 1 else (draws, N, 2)
    eps = torch.normal(torch.zeros(shape, dtype=X.dtype), 1.0)
    of_prior = torch.normal(torch.zeros(N, 2, dtype=X.dtype), 1.0)
    q = guide.encode(X).base_dist
    kl = (0.5 * (q.loc**2 + q.scale**2 - 1) - q.scale.log()).sum(-1).mean()
    mean = model.decoder(q.loc + q.scale * eps).reshape(-1, D)
    generated = model.decoder(of_prior)[:, 0]
    ((of_rows, target), (of_mean, features), (of_draws, _)), h = by_formula(
        model, X, mean, generated
    )
    squares = (features.reshape(draws, N, 6) - target).square().sum(-1).mean()
    like = 0.5 * squares + 3 * math.log(2 * math.pi)
    fooled = -logsigmoid(of_mean).mean() - logsigmoid(of_draws).mean()
    encoder, decoder = 0.7 * kl + like, 0.3 * like + fooled
    torch.testing.assert_close(loss.loss, (encoder + decoder).detach())
    same_gradients(gradients(loss.loss, guide), gradients(encoder, guide))
    same_gradients(gradients(loss.loss, model.decoder), gradients(decoder, model.decoder))
    assert not any(g is not None for g in gradients(loss.loss, model.discriminator))

    loss = lost(model, guide, objective, "discriminator")
    game = -logsigmoid(of_rows).mean() - logsigmoid(-of_mean).mean() - logsigmoid(-of_draws).mean()
    torch.testing.assert_close(loss.loss, game)
    same_gradients(gradients(loss.loss, model.discriminator), gradients(game, model.discriminator))
    assert not any(g is not None for g in gradients(loss.loss, model.decoder, guide))
    require_moved_once(model, before, h)
    assert model.discriminator.counts[:, 1].tolist() == [N, (draws + 1) * N]


def test_batch_norm_sees_rows_and_draws_of_a_gan_together() -> None:
    model, guide = normed()
    before = buffers(model)
    loss = lost(model, guide, GANLoss(), "generator")
    after = buffers(model)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    ((of_rows, _), (of_draws, _)), h = by_formula(model, X, ByHand(model, guide).generated)
    # `ByHand` has shown the discriminator others.
    model.discriminator.load_state_dict(before, strict=False)
    fooled = -logsigmoid(of_draws).mean()
    torch.testing.assert_close(loss.loss, fooled.detach())
    same_gradients(gradients(loss.loss, model.decoder), gradients(fooled, model.decoder))
    loss = lost(model, guide, GANLoss(), "discriminator")
    game = -logsigmoid(of_rows).mean() - logsigmoid(-of_draws).mean()
    torch.testing.assert_close(loss.loss, game)
    same_gradients(gradients(loss.loss, model.discriminator), gradients(game, model.discriminator))
    require_moved_once(model, before, h)


class InstanceNorm(nn.Sequential):
    """Of two channels with three places each, with statistics for evaluation."""

    def __init__(self) -> None:
        norm = nn.InstanceNorm1d(2, track_running_stats=True)
        super().__init__(nn.Unflatten(1, (2, 3)), norm, nn.Flatten())


@pytest.mark.parametrize(
    "norm", [lambda: nn.BatchNorm1d(6), lambda: nn.BatchNorm1d(6, momentum=None), InstanceNorm]
)
@pytest.mark.parametrize("objective", [VAEGANLoss(), GANLoss()])
def test_statistics_are_those_of_the_discriminators_turn(
    objective: Alternating, norm: Callable[[], nn.Module]
) -> None:
    model, guide = normed(norm())
    first, second = [turn.name for turn in objective.turns(Pair(model, guide))]
    before = buffers(model)
    settings = [str(part) for part in model.discriminator.modules()]
    lost(model, guide, objective, first)
    after = buffers(model)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert [str(part) for part in model.discriminator.modules()] == settings
    lost(model, guide, objective, second)
    moved = {
        name.split(".")[-1]
        for name, value in buffers(model).items()
        if not torch.equal(value, before[name])
    }
    assert {"running_mean", "running_var", "counts"} <= moved


@pytest.mark.parametrize("wrap", [parametrizations.spectral_norm, nn.utils.spectral_norm])
@pytest.mark.parametrize("objective", [VAEGANLoss(), GANLoss()])
def test_vectors_of_spectral_norm_are_those_of_the_discriminators_turn(
    objective: Alternating, wrap: Callable[[nn.Module], nn.Module]
) -> None:
    """One step of the power iteration for one pass in that turn, and none in the other."""
    model, guide = pair()
    net: Any = model.discriminator.trunk.net
    wrap(net[0])
    first, second = [turn.name for turn in objective.turns(Pair(model, guide))]

    def vectors() -> list[Tensor]:
        named = dict(model.discriminator.named_buffers())
        return [v.clone() for name, v in sorted(named.items()) if name.endswith(("_u", "_v"))]

    weights = [p for n, p in net[0].named_parameters() if n.endswith(("original", "_orig"))]
    with torch.no_grad():  # far from where the iteration ends
        weights[0].copy_(torch.randn(6, D, generator=torch.Generator().manual_seed(3)))
    before = vectors()
    lost(model, guide, objective, first)
    assert all(torch.equal(*each) for each in zip(vectors(), before, strict=True))
    assert all(part.training for part in model.discriminator.modules())
    lost(model, guide, objective, second)
    (w,), (u, v) = [weight.detach() for weight in weights], before
    if wrap is nn.utils.spectral_norm:  # which begins with the other one
        v = nn.functional.normalize(w.T @ u, dim=0)
        u = nn.functional.normalize(w @ v, dim=0)
    else:
        u = nn.functional.normalize(w @ v, dim=0)
        v = nn.functional.normalize(w.T @ u, dim=0)
    assert not torch.allclose(u, before[0])
    torch.testing.assert_close(vectors(), [u, v])


class Shifted(nn.Module):
    """z ~ N(0, I), x ~ N(z + shift, 0.1^2 I), with the discriminator of `normed`."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(shift, dtype=X.dtype))
        self.discriminator = normed()[0].discriminator

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x[0]), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + self.shift, 0.1).to_event(1), obs=x)


class Copied(nn.Module):
    """z is x, nearly."""

    def __init__(self) -> None:
        super().__init__()
        self.none = nn.Parameter(torch.zeros((), dtype=X.dtype))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x + self.none, 1e-9).to_event(1))


@pytest.mark.parametrize("turn", ["pair", "discriminator"])
def test_a_discriminator_with_batch_norm_sees_brightness(turn: str) -> None:
    """Of x' = x the features and logits are those of x, of x' = x + 1 they are far from these.

    Apart from each other, rows and reconstructions would be normalized to the same numbers.
    """
    for shift in (0.0, 1.0):
        model = Shifted(shift)
        said: list[Any] = []
        model.discriminator.register_forward_hook(lambda module, x, out: said.append(out))  # noqa: B023
        lost(model, Copied(), VAEGANLoss(), turn)
        ((logits, features),) = said
        for numbers in (logits, features):
            of_rows, of_means, _ = numbers.detach().split(N)
            difference = float((of_rows - of_means).square().mean().sqrt())
            assert (difference > 0.1) == (shift > 0), difference


# -- the best discriminator ------------------------------------------------------------------------------


class Quadratic(nn.Module):
    """A logit that is quadratic in x: the best one between two normals is."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.cat([x, x.square()], 1)
        return self.weights[0] + features @ self.weights[1:], features


class Affine(nn.Module):
    """z ~ N(0, 1), x ~ N(mean + scale z, 0.1^2); its discriminator judges mean + scale z."""

    def __init__(self, mean: float, scale: float) -> None:
        super().__init__()
        self.affine = nn.Parameter(torch.tensor([mean, scale]))
        self.discriminator = Quadratic()

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            loc = self.affine[0] + self.affine[1] * z
            pyro.sample("x", dist.Normal(loc, 0.1).to_event(1), obs=x)


class Latent(nn.Module):
    """z ~ N(a x, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.slope * x, 1.0).to_event(1))


@dataclass(frozen=True, kw_only=True)
class OnlyTheDiscriminator(Alternating):
    """The second turn of `GANLoss`."""

    def turns(self, pair: Pair) -> Sequence[Turn]:
        return list(GANLoss().turns(pair))[1:]

    def keeps(self, pair: Pair, name: str) -> bool:
        return "discriminator" not in name


GRID = torch.linspace(-12, 12, 20001, dtype=torch.float64)


def game(logit: Callable[[Tensor], Tensor]) -> float:
    """-E_p log D - E_q log(1 - D) by quadrature, for p = N(0, 1) and q = N(1, 0.5^2)."""
    p, q = (
        torch.distributions.Normal(m, s).log_prob(GRID).exp() for m, s in ((0.0, 1.0), (1.0, 0.5))
    )
    values = -(p * logsigmoid(logit(GRID)) + q * logsigmoid(-logit(GRID)))
    return float(torch.trapezoid(values, GRID))


def best() -> float:
    """log 4 - 2 JS(p, q) by quadrature, from the definition of the divergence."""
    p, q = (torch.distributions.Normal(m, s) for m, s in ((0.0, 1.0), (1.0, 0.5)))
    log_p, log_q = p.log_prob(GRID), q.log_prob(GRID)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    js = 0.5 * (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m))
    return math.log(4) - 2 * float(torch.trapezoid(js, GRID))


def test_the_loss_of_the_best_discriminator_is_the_divergence() -> None:
    """log p / q is -log 2 + 2 - 4 x + 3/2 x^2: by quadrature to 1e-8, and on draws within 5 standard errors."""
    model, guide = Affine(1.0, 0.5), Latent()
    model.discriminator.weights.data = torch.tensor([2 - math.log(2), -4.0, 1.5])
    found = game(lambda x: 2 - math.log(2) - 4 * x + 1.5 * x.square())
    assert found == pytest.approx(best(), abs=1e-8)
    x = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0))
    loss = float(lost(model, guide, GANLoss(), "discriminator", x).loss.detach())
    assert loss == pytest.approx(best(), abs=5 * math.sqrt(2 / len(x)))


@pytest.mark.slow
def test_a_discriminator_comes_to_the_divergence() -> None:
    """Trained by its turn alone: its loss under the two normals is within 1e-3 of log 4 - 2 JS = 0.938."""
    model, guide = Affine(1.0, 0.5), Latent()
    assert game(lambda x: 0 * x) == pytest.approx(math.log(4), abs=1e-6)  # where it begins
    x = torch.randn(8_000, 1, generator=torch.Generator().manual_seed(0))
    before = model.affine.detach().clone()
    fit(
        model,
        guide,
        x,
        objective=OnlyTheDiscriminator(),
        learning_rate=0.1,
        lr_scheduler=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.85),
        batch_size=200,
        max_epochs=20,
        seed=0,
    )
    a, b, c = model.discriminator.weights.detach().double()
    found = game(lambda x: a + b * x + c * x.square())
    assert best() <= found <= best() + 1e-3
    assert torch.equal(model.affine, before)


def test_a_generator_comes_to_the_rows() -> None:
    """The whole game, from draws of N(1, 0.5^2) to rows of N(0, 1): mean and spread within 0.15."""
    model, guide = Affine(1.0, 0.5), Latent()
    x = torch.randn(4_000, 1, generator=torch.Generator().manual_seed(0))
    objective = GANLoss(discriminator_lr=0.05)
    fit(
        model,
        guide,
        x,
        objective=objective,
        learning_rate=5e-3,
        batch_size=200,
        max_epochs=25,
        seed=0,
    )
    mean, scale = model.affine.tolist()
    assert abs(mean) < 0.15
    assert abs(scale) == pytest.approx(1.0, abs=0.15)
    assert guide.slope == 0.5


# -- trainings -------------------------------------------------------------------------------------------

ROWS = X.float()


def small(**settings: Any) -> tuple[VAEGAN, MeanField]:
    model, guide = pair(**settings)
    return model.float(), guide.float()


def test_the_default_objective_is_that_of_a_vae_gan() -> None:
    model, guide = small()
    assert ELBO(beta=0.5).resolve(Pair(model, guide), ROWS) == VAEGANLoss(beta=0.5)
    landing = ELBO(stick_the_landing=True).resolve(Pair(model, guide), ROWS)
    assert landing == TraceELBO(stick_the_landing=True)
    fitted = fit(model, guide, ROWS, batch_size=5, max_epochs=2, seed=0)
    assert (fitted.objective, fitted.resolved) == (ELBO(), VAEGANLoss())
    assert repr(fitted).endswith("stopped='reached max_epochs = 2', objective=VAEGANLoss)")
    assert "objective, for this pair" in fitted._repr_html_()
    assert "VAEGANLoss(beta=1.0" in fitted._repr_html_()
    row = fitted.history[-1]
    assert {"loss_pair", "loss_discriminator", "accuracy_real", "accuracy_false"} <= row.keys()
    assert row["loss"] == pytest.approx(row["loss_pair"] + row["loss_discriminator"], rel=1e-5)
    assert row["elbo"] == pytest.approx(-row["rate"] - row["distortion"], rel=1e-5)
    assert fitted.steps == 6
    # A frozen model has no discriminator to be trained: it is the ELBO.
    before = weights(model, model)
    refitted = refit_guide(model, guide, ROWS, max_epochs=1, seed=0)
    assert "loss_pair" not in refitted.history[0]
    assert same(weights(model, model), before)


@dataclass(frozen=True, kw_only=True)
class Doubled(MeanFieldELBO):
    """An objective of a user's own."""

    def __call__(self, pair: Pair, layout: Any, batch: Any, beta: float = 1.0) -> Loss:
        found = super().__call__(pair, layout, batch, beta)
        return Loss(2 * found.loss, found.elbo, found.rate, found.distortion, found.traces)


@dataclass(frozen=True, kw_only=True)
class OwnELBO(ELBO):
    """An ELBO that chooses another estimator."""

    def resolve(self, pair: Pair, batch: Any) -> Objective:
        found = super().resolve(pair, batch)
        return Doubled(beta=self.beta) if isinstance(found, MeanFieldELBO) else found


@dataclass(frozen=True, kw_only=True)
class SameELBO(ELBO):
    """An ELBO that changes nothing."""


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (OwnELBO, Doubled(beta=0.5)),
        (SameELBO, MeanFieldELBO(beta=0.5)),
        ("VAEGANLoss", VAEGANLoss(beta=0.5)),
        (VAEGANLoss, VAEGANLoss(beta=0.5)),
        (Doubled, Doubled(beta=0.5)),
        (None, MeanFieldELBO(beta=0.5)),
        ("ELBO", MeanFieldELBO(beta=0.5)),
    ],
)
def test_a_model_asks_for_an_objective(asked: Any, expected: Objective) -> None:
    model: Any = Affine(1.0, 0.5)
    model.default_objective = asked
    x = torch.zeros(4, 1)
    assert ELBO(beta=0.5).resolve(Pair(model, Latent()), x) == expected
    given = OwnELBO(beta=0.5)  # which was chosen, so that the model is not asked
    assert given.resolve(Pair(model, Latent()), x) == Doubled(beta=0.5)


def test_a_module_of_the_name_discriminator_chooses_nothing() -> None:
    """A model of a user's own that has one is trained by the ELBO, and by an adversary if that is asked for."""

    class Own(Affine):
        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
                loc = self.affine[0] + self.affine[1] * z + self.discriminator(z)[0][..., None]
                pyro.sample("x", dist.Normal(loc, 0.1).to_event(1), obs=x)

    x = torch.randn(8, 1, generator=torch.Generator().manual_seed(0))
    fitted = fit(Own(1.0, 0.5), Latent(), x, max_epochs=1, seed=0)
    assert fitted.resolved == MeanFieldELBO()
    assert "loss_discriminator" not in fitted.history[0]
    assert repr(fitted).endswith("', objective=MeanFieldELBO)")
    given = fit(Own(1.0, 0.5), Latent(), x, objective=MeanFieldELBO(), max_epochs=1, seed=0)
    assert repr(fitted) == repr(given)[:-1] + ", objective=MeanFieldELBO)"
    assert "for this pair" not in given._repr_html_()


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("VAEGANLos", "default_objective = 'VAEGANLos', which must be the name of an objective"),
        ("adversarial", "default_objective = 'adversarial'"),
        ("Turn", "default_objective = 'Turn'"),
        ("Alternating", "'Alternating', which must be .* a class that .* has all of its methods"),
        (Objective, "the class Objective, which must be the name"),
        (VAEGANLoss(), "an object of VAEGANLoss, which must be the name .* or a class"),
        (print, "default_objective = .*, which must be"),
    ],
)
def test_a_model_that_asks_for_no_objective(asked: Any, told: str) -> None:
    model: Any = Affine(1.0, 0.5)
    model.default_objective = asked
    with pytest.raises(PairError, match=told):
        fit(model, Latent(), torch.zeros(4, 1), max_epochs=1)


def test_a_model_that_asks_for_an_adversary_needs_one() -> None:
    model: Any = VAE((D,), 2, NET, LearnedGaussian())
    model.default_objective = "VAEGANLoss"
    with pytest.raises(PairError, match="VAEGANLoss needs a model with a module `discriminator`"):
        fit(model, MeanField((D,), 2, NET), ROWS, max_epochs=1)


def test_an_adversarial_loss_is_not_taken_for_the_elbo() -> None:
    """By default as well: a training that watches that they agree would tell of an error after 20 steps."""
    model, guide = small()
    fitted = fit(model, guide, ROWS, batch_size=4, max_epochs=10, seed=0)
    assert fitted.steps == 30
    assert fitted.warnings == ()


@pytest.mark.parametrize(
    ("make", "objective", "kept"),
    [
        (VAEGAN, ELBO(), 3),
        (VAEGAN, VAEGANLoss(), 3),
        (VAEGAN, MeanFieldELBO(), 2),
        (VAE, ELBO(), 2),
    ],
)
def test_the_last_weights_of_a_run_are_those_of_an_adversary(
    make: Any, objective: Objective, kept: int, tmp_path: Path
) -> None:
    """Of a run that could stop early: its best epoch by the ELBO, unless the loss is no ELBO."""
    history = [
        {"step": 5.0 * i, "elbo": e, "validation_elbo": e}
        for i, e in ((1, -3.0), (2, -1.0), (3, -2.0))
    ]
    run: Any = SimpleNamespace(
        path=tmp_path, config={"patience": 5}, model=make((D,), 2, NET), guide=None
    )
    with patch("ppl_vae.cli.reached.read_history", return_value=history):
        found = fit_of(run, objective)
    assert found.best_epoch == kept
    asks = make is VAEGAN and objective == ELBO()
    assert found.resolved == (VAEGANLoss() if asks else None)


class Said(Discriminator):
    """Its logits are the first number of each row."""

    def __init__(self) -> None:
        super().__init__(NET, (1,))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, 0], x


def test_accuracy_is_that_of_a_discriminator_beside_chance() -> None:
    """With two kinds of false rows, D = 1/3 tells nothing: logit -0.69. With one, D = 1/2."""
    real = torch.tensor([[0.2], [-0.5], [-0.6], [-0.8]])  # D = 0.55, 0.38, 0.35, 0.31
    first, second = torch.tensor([[-0.8], [-0.5]]), torch.tensor([[-0.9], [-2.0]])
    judge = Said()
    seen_through(judge, real, first, second)
    assert judge.epoch_metrics() == {"accuracy_real": 0.75, "accuracy_false": 0.75}
    seen_through(judge, real, second)
    assert judge.epoch_metrics() == {"accuracy_real": 0.25, "accuracy_false": 1.0}
    # What tells nothing says the same of all kinds: the shares add up to 1.
    seen_through(judge, real, real, real)
    told = judge.epoch_metrics()
    assert told == {"accuracy_real": 0.75, "accuracy_false": 0.25}
    judge.eval()
    seen_through(judge, real, first, second)
    assert judge.epoch_metrics() == {}


def test_accuracy_is_that_of_the_logits() -> None:
    judge = Discriminator(NET, (D,))
    judge.count(torch.tensor([1.0, -1.0, 2.0]), torch.tensor([-1.0, 3.0]))
    judge.count(torch.tensor([1.0]), torch.tensor([-1.0, -3.0]))
    assert judge.epoch_metrics() == {"accuracy_real": 0.75, "accuracy_false": 0.75}
    assert judge.epoch_metrics() == {}


def accuracies(rank: int, count: int) -> list[dict[str, float]]:
    """Of a D that does not move, by so many processes: 33 rows, the last of which is a batch of its own."""
    model, guide = Affine(1.0, 0.0), Latent()
    x = torch.randn(33, 1, generator=torch.Generator().manual_seed(0))
    model.discriminator = judge = Discriminator(NET, (1,))  # type: ignore[assignment]
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in judge.parameters():
            nn.init.normal_(parameter)
        judge.head.bias.sub_(judge(x)[0].median())
    expected = float((judge(x)[0] > 0).double().mean()), float(judge(torch.ones(1, 1))[0] < 0)
    fitted = fit(
        *(model, guide, x),
        objective=GANLoss(),
        optimizer=torch.optim.SGD,
        learning_rate=1e-9,
        batch_size=16,
        max_epochs=2,
        seed=0,
        fabric=make_fabric("cpu", num_processes=count),
        progress=False,
    )
    found = [(row["accuracy_real"], row["accuracy_false"]) for row in fitted.history]
    return [dict(zip(("real", "false"), each, strict=True)) for each in (expected, *found)]


def test_accuracy_of_two_processes_is_that_of_all_rows(tmp_path: Path) -> None:
    """The first process has 17 of the 33 rows, so that its own shares are others."""
    for expected, *found in (
        accuracies(0, 1),
        *Ranks(lambda rank: accuracies(rank, 2), tmp_path).end(60),
    ):
        assert 0.4 < expected["real"] < 0.6
        for row in found:
            assert row == pytest.approx(expected, abs=1e-6)


def test_a_gan_leaves_the_guide_and_vae_dis_the_discriminator() -> None:
    model, guide = small()
    before = weights(model, guide)
    fit(model, guide, ROWS, objective=GANLoss(), max_epochs=2, seed=0)
    after = weights(model, guide)
    for name, value in after.items():
        moved = name.startswith(("model.decoder", "model.discriminator", "model.likelihood"))
        assert torch.equal(value, before[name]) != (moved and "counts" not in name), name
    fit(model, guide, ROWS, objective=VAEDisLoss(), max_epochs=2, seed=0)
    last = weights(model, guide)
    for name, value in last.items():
        moved = name.startswith(("model.decoder", "guide", "model.likelihood"))
        assert torch.equal(value, after[name]) != moved, name
    assert all(p.grad is None for p in model.discriminator.parameters())


def judge() -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(NET, (D,))


class OwnModel(nn.Module):
    """z ~ N(0, I), x ~ N(loc + z, 0.5^2 I); loc is a parameter or a `pyro.param`."""

    def __init__(self, of_pyro: bool) -> None:
        super().__init__()
        self.discriminator = judge()
        if not of_pyro:
            self.loc = nn.Parameter(torch.full((D,), 0.1))

    def forward(self, x: Tensor) -> None:
        loc = getattr(self, "loc", None)
        loc = pyro.param("loc", torch.full((D,), 0.1)) if loc is None else loc
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(loc + z, 0.5).to_event(1), obs=x)


class OwnGuide(nn.Module):
    """z ~ N(slope x, 0.8^2 I)."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.full((D,), 0.5))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.slope * x, 0.8).to_event(1))


def of_functions() -> tuple[Any, Any]:
    """The same programs as functions, with a discriminator that is an attribute of the model."""

    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.full((D,), 0.1))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(loc + z, 0.5).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.full((D,), 0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x, 0.8).to_event(1))

    program: Any = model
    program.discriminator = judge()
    return program, guide


@pytest.mark.parametrize(
    ("objective", "kept"),
    [(VAEGANLoss(), ""), (GANLoss(), "slope"), (VAEDisLoss(), "discriminator")],
)
@pytest.mark.parametrize("make", [lambda: (OwnModel(True), OwnGuide()), of_functions])
def test_numbers_of_pyro_param_are_trained_as_parameters_are(
    make: Any, objective: Objective, kept: str
) -> None:
    """Of a module and of a function: after six steps they are those of a module that has parameters."""

    def trained(model: Any, guide: Any) -> dict[str, Tensor]:
        options: dict[str, Any] = {"batch_size": 4, "max_epochs": 2, "learning_rate": 0.01}
        fitted = fit(model, guide, ROWS, objective=objective, seed=0, **options)
        state = Pair(fitted.model, fitted.guide).state()
        return {name.partition(".")[2]: value.clone() for name, value in state.items()}

    expected = trained(OwnModel(False), OwnGuide())
    assert {"loc", "slope", "discriminator.head.weight"} <= expected.keys()
    found = trained(*make())
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    start = {"loc": torch.full((D,), 0.1), "slope": torch.full((D,), 0.5)}
    start |= {f"discriminator.{name}": p for name, p in judge().named_parameters()}
    for name, value in start.items():
        assert torch.equal(found[name], value) == bool(kept and name.startswith(kept)), name


def test_an_objective_that_trains_nothing_says_what_to_do() -> None:
    model, guide = small()
    model.requires_grad_(False)
    with pytest.raises(PairError, match=r"moves nothing: .* Call requires_grad_\(\) of it"):
        fit(model, guide, ROWS, objective=GANLoss(), max_epochs=1, seed=0)
    guide.requires_grad_(False)
    model.discriminator.requires_grad_()
    with pytest.raises(
        ValueError, match=r"VAEDisLoss leaves all .* call requires_grad_\(\) of what it"
    ):
        fit(model, guide, ROWS, objective=VAEDisLoss(), max_epochs=1, seed=0)
    guide.requires_grad_()
    fit(model, guide, ROWS, objective=VAEDisLoss(), max_epochs=1, seed=0)


def test_vae_dis_is_captured_and_sees_the_discriminator_as_it_is_evaluated() -> None:
    """With batch norm in the discriminator: the same numbers by a recording, and its statistics stay."""
    network, x = (
        Convolutional((3,), 4),
        torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0)),
    )

    recorded: list[CapturedLoss] = []
    record = CapturedLoss._record

    def noted(self: CapturedLoss, *given: Any) -> Any:
        recorded.append(self)
        return record(self, *given)

    def run(capture: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = VAEGAN((1, 4, 4), 2, MLP((4,)), discriminator=network)
        guide = MeanField((1, 4, 4), 2, MLP((4,)))
        options: dict[str, Any] = {"batch_size": 5, "max_epochs": 10, "seed": 0}
        with patch.object(CapturedLoss, "_record", noted):
            fit(model, guide, x, objective=VAEDisLoss(), capture=capture, compile=False, **options)
        assert int(model.discriminator.trunk.net[1].num_batches_tracked) == 0  # type: ignore[index, union-attr]
        return weights(model, guide)

    assert same(run(True), run(False))
    (loss,) = recorded
    assert loss.comparisons >= 3  # with Pyro, and none of them has turned it off


@pytest.mark.parametrize("make", [pair, normed])
def test_a_resumed_vae_gan_ends_at_the_same_bits(make: Any, tmp_path: Path) -> None:
    def small() -> tuple[nn.Module, nn.Module]:
        model, guide = make()
        return model.float(), guide.float()

    options: dict[str, Any] = {"objective": VAEGANLoss(discriminator_every=2), "batch_size": 5}
    options |= {"seed": 0, "learning_rate": 0.01}
    whole = small()
    fitted = fit(*whole, ROWS, max_epochs=3, **options)
    parts = small()
    fit(*parts, ROWS, max_epochs=1, run_dir=tmp_path / "run", **options)
    parts = small()
    resumed = fit(*parts, ROWS, max_epochs=3, run_dir=tmp_path / "run", resume=True, **options)
    assert same(weights(*parts), weights(*whole))
    for mine, truth in zip(resumed.history, fitted.history, strict=True):
        assert {**mine, "seconds": 0} == {**truth, "seconds": 0}


@pytest.mark.parametrize("own", [False, True])
def test_a_run_of_other_features_is_not_resumed(own: bool, tmp_path: Path) -> None:
    """Also in a model of a user's own: the layer has no weights, by which it could be told."""

    def made(layer: int) -> tuple[Any, Any]:
        network = MLP((6, 6))
        if not own:
            model: Any = VAEGAN((D,), 2, NET, discriminator=network, feature_layer=layer)
            return model, MeanField((D,), 2, NET)
        model = OwnModel(False)
        model.discriminator = Discriminator(network, (D,), layer)
        return model, OwnGuide()

    options: dict[str, Any] = {"objective": VAEGANLoss(), "seed": 0, "run_dir": tmp_path / "run"}
    fit(*made(1), ROWS, max_epochs=1, **options)
    assert fit(*made(1), ROWS, max_epochs=2, resume=True, **options).epochs == 2
    name = "model.discriminator" if own else "model"
    told = rf"settings\.{name}\.feature_layer = 1, now it is 2"
    with pytest.raises(ValueError, match=told):
        fit(*made(2), ROWS, max_epochs=3, resume=True, **options)


# -- the discriminator -----------------------------------------------------------------------------------


def test_features_are_the_outputs_of_a_layer() -> None:
    network = Convolutional((3, 4), 5)
    x = torch.rand(2, 3, 1, 6, 6)  # with two dimensions of rows
    for layer, shape in ((1, (3, 3, 3)), (2, (4, 2, 2)), (3, (5,)), (None, (5,))):
        torch.manual_seed(0)
        judge = Discriminator(network, (1, 6, 6), layer).eval()
        logits, features = judge(x)
        assert (logits.shape, features.shape) == ((2, 3), (2, 3, *shape))
        net: Any = judge.trunk.net
        part = net[: {1: 3, 2: 6}.get(layer or 0, len(net))]
        expected = part(x.flatten(0, 1)).reshape(features.shape)
        torch.testing.assert_close(features, expected)
        torch.testing.assert_close(logits, judge.head(judge.trunk(x)).squeeze(-1))


@pytest.mark.parametrize(
    ("network", "layer", "told"),
    [
        (MLP((4,)), 2, "feature_layer is 2, but .* has 1 hidden layers"),
        (MLP((4,)), 0, "feature_layer"),
        (catalogue.NETWORKS["AutoregressiveDecoder"], 9, "feature_layer"),
    ],
)
def test_a_layer_that_is_not_there(network: Any, layer: int, told: str) -> None:
    with pytest.raises((ValueError, TypeError), match=told):
        VAEGAN((1, 8, 8), 2, discriminator=network, feature_layer=layer)


def test_the_default_discriminator_suits_the_rows() -> None:
    parts = [*VAEGAN((1, 8, 8), 2).discriminator.modules()]
    assert any(isinstance(m, nn.Conv2d) for m in parts)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in parts)  # which compares batches
    assert not any(isinstance(m, nn.Conv2d) for m in VAEGAN((8,), 2).discriminator.modules())
    with pytest.raises(TypeError, match="discriminator"):
        VAEGAN((8,), 2, discriminator="MLP")  # type: ignore[arg-type]


# -- errors ----------------------------------------------------------------------------------------------


class Wrong(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum(1)


@pytest.mark.parametrize("objective", [VAEGANLoss(), GANLoss(), VAEDisLoss()])
def test_pairs_that_do_not_suit(objective: Objective) -> None:
    guide = MeanField((D,), 2, NET)
    name = type(objective).__name__
    with pytest.raises(PairError, match=f"{name} needs a model with a module `discriminator`"):
        fit(VAE((D,), 2, NET, LearnedGaussian()), guide, ROWS, objective=objective, max_epochs=1)
    model, _ = small(likelihood=Categorical(3))
    with pytest.raises(PairError, match=r"sees the mean of .*, Categorical, states none"):
        fit(model, guide, (3 * ROWS).floor(), objective=objective, max_epochs=1)
    model, _ = small()
    model.discriminator = Wrong()  # type: ignore[assignment]
    if objective != VAEDisLoss():  # which keeps no parameter of it
        with pytest.raises(PairError, match="moves nothing"):
            fit(model, guide, ROWS, objective=objective, max_epochs=1)
    model.discriminator.weight = nn.Parameter(torch.zeros(1))
    n, at_once = {
        "VAEGANLoss": (36, r" \(12 \+ 12 \+ 12 at once\)"),
        "GANLoss": (24, r" \(12 \+ 12 at once\)"),
        "VAEDisLoss": (12, ""),
    }[name]
    with pytest.raises(
        PairError,
        match=rf"must return logits \({n},\) and features .* of {n} rows{at_once}, .* an objective that does",
    ):
        fit(model, guide, ROWS, objective=objective, max_epochs=1)


class Masked(OwnModel):
    """Its rows, or their numbers, are left out where a mask says so."""

    def __init__(self, of_rows: bool, whole: bool) -> None:
        super().__init__(False)
        self.of_rows, self.whole = of_rows, whole

    def forward(self, x: Tensor) -> None:
        mask: Any = torch.full_like(x, True, dtype=torch.bool)
        mask[0, 0] = self.whole
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))
            p = dist.Normal(self.loc + z, 0.5)
            if self.of_rows:
                with pyro.poutine.mask(mask=mask.all(1)):
                    pyro.sample("x", p.to_event(1), obs=x)
            else:
                pyro.sample("x", p.mask(mask).to_event(1), obs=x)


@pytest.mark.parametrize("of_rows", [True, False])
@each_turn
def test_rows_with_something_left_out_are_refused(
    objective: Objective, turn: str | None, of_rows: bool
) -> None:
    """D would be shown what the model does not see."""
    assert lost(Masked(of_rows, True), OwnGuide(), objective, turn, ROWS).loss.isfinite()
    with pytest.raises(PairError, match="sees whole rows, and masks leave out numbers of site 'x'"):
        lost(Masked(of_rows, False), OwnGuide(), objective, turn, ROWS)


def test_a_latent_without_a_gradient_is_refused() -> None:
    class Discrete(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.discriminator = Discriminator(NET, (D,))
            self.means = nn.Parameter(torch.randn(3, D))

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Categorical(torch.ones(3) / 3))
                pyro.sample("x", dist.Normal(self.means[z], 1.0).to_event(1), obs=x)

    class Chosen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(D, 3)

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Categorical(logits=self.head(x)))

    for objective in (VAEGANLoss(), VAEDisLoss()):
        with pytest.raises(PairError, match="'z' is drawn from Categorical, which has no reparam"):
            fit(Discrete(), Chosen(), ROWS, objective=objective, max_epochs=1)
    with pytest.raises(PairError, match="'z' is drawn from Categorical, which has no reparam"):
        lost(Discrete(), Chosen(), VAEGANLoss(), "pair", ROWS)
    fitted = fit(Discrete(), Chosen(), ROWS, objective=GANLoss(), max_epochs=1, seed=0)
    assert math.isfinite(fitted.history[0]["loss_generator"])


@pytest.mark.parametrize(
    ("kind", "settings", "told"),
    [
        (
            VAEGANLoss,
            {"gamma": -1.0},
            "gamma must be finite and >= 0, or None for 1 /",
        ),
        (VAEGANLoss, {"gamma": "1"}, "gamma"),
        (VAEGANLoss, {"feature_sigma": 0.0}, "feature_sigma must be positive and finite, or None"),
        (VAEDisLoss, {"feature_sigma": "1"}, "feature_sigma"),
        (VAEGANLoss, {"free_bits": 0.1}, "no free bits with adversarial losses"),
        (VAEGANLoss, {"saturating": 1}, "saturating"),
        (VAEGANLoss, {"discriminator_every": 0}, "discriminator_every must be at least 1"),
        (GANLoss, {"discriminator_lr": -1.0}, "discriminator_lr must be finite and >= 0"),
        (GANLoss, {"beta": 2.0}, "leave beta at 1, got 2.0"),
        (GANLoss, {"num_particles": 2}, "leave num_particles at 1, got 2"),
        (VAEDisLoss, {"free_bits": 0.1}, "no free bits"),
    ],
)
def test_settings(kind: Any, settings: dict[str, Any], told: str) -> None:
    with pytest.raises((ValueError, TypeError), match=told):
        kind(**settings)


# -- the command line ------------------------------------------------------------------------------------

OPTIONS = (*catalogue.SMALL_RUN, *catalogue.SMALL_NETWORK, "--quiet", "--max_epochs", "1")


@pytest.mark.parametrize(
    "objective",
    [
        pytest.param("ELBO", marks=pytest.mark.slow),
        "GANLoss",
        pytest.param("VAEDisLoss", marks=pytest.mark.slow),
    ],
)
def test_the_command_line(objective: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = ("--model.latent_dim", "2", "--objective", objective)
    with patch("ppl_vae.cli.finish.draw_run", return_value=[]):
        run_dir = ("--run_dir", str(folder))
        assert main(["train", "--model", "VAEGAN", *run_dir, *options, *OPTIONS]) == 0
    run = load_run(folder)
    model: Any = run.model
    assert type(model) is VAEGAN
    assert type(model.likelihood).__name__ == "OptimalGaussian"
    parts = [*model.discriminator.modules()]
    assert any(isinstance(part, nn.Conv2d) for part in parts)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in parts)
    row = read_history(folder)[0]
    assert ("loss_discriminator" in row) == (objective != "VAEDisLoss")
    assert main(["diagnose", str(folder), "--quiet", "--overwrite"]) == 0
    if objective == "GANLoss":
        other = ("--run_dir", str(tmp_path / "refitted"), "--max_epochs", "1", "--quiet")
        with patch("ppl_vae.cli.finish.draw_run", return_value=[]):
            assert main(["refit", str(folder), *other]) == 0
        refitted = load_run(tmp_path / "refitted")
        assert refitted.config["objective"]["class_path"].endswith(".ELBO")
        assert same(weights(refitted.model, nn.Identity()), weights(model, nn.Identity()))
