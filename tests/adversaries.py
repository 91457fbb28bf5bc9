"""Pairs with a discriminator, and their losses by hand, for the tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from ppl_vae.guides import MeanField
from ppl_vae.models import VAEGAN
from ppl_vae.networks import MLP
from ppl_vae.objectives import (
    Alternating,
    GANLoss,
    Loss,
    Objective,
    VAEDisLoss,
    VAEGANLoss,
)
from ppl_vae.pairs import Pair, find_layout

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
