"""VAE/GAN, GAN and VAE_Dis: which loss reaches what, by which optimizer, and what the game comes to."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import catalogue
import pyro
import pyro.distributions as dist
import pytest
import torch
from adversaries import (
    NET,
    Affine,
    ByHand,
    D,
    Latent,
    N,
    X,
    each_turn,
    gradients,
    lost,
    pair,
    same_gradients,
)
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from ppl_vae import evaluate, fit
from ppl_vae.guides import MeanField
from ppl_vae.likelihoods import LearnedGaussian
from ppl_vae.models import VAEGAN, DiagonalNormal
from ppl_vae.networks import Convolutional
from ppl_vae.objectives import (
    Alternating,
    GANLoss,
    Objective,
    TraceELBO,
    Turn,
    VAEDisLoss,
    VAEGANLoss,
)
from ppl_vae.objectives.judged_rows import feature_loss
from ppl_vae.pairs import Pair

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


# -- the best discriminator ------------------------------------------------------------------------------


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


@pytest.mark.slow
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
