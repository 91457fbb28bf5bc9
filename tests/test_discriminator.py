"""The discriminator: what it sees, what batch norm in it sees, and how it is built."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import catalogue
import pyro
import pyro.distributions as dist
import pytest
import torch
from adversaries import ByHand, D, N, X, gradients, lost, normed, pair, same_gradients
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from torch.nn.utils import parametrizations

from ppl_vae import fit
from ppl_vae.guides import MeanField
from ppl_vae.models import VAEGAN, Discriminator
from ppl_vae.networks import MLP, Convolutional
from ppl_vae.objectives import (
    Alternating,
    GANLoss,
    VAEGANLoss,
)
from ppl_vae.pairs import Pair

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
