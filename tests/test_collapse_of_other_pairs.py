"""Causes of unused latents in pairs with labels, classes, several latents, or masks."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import gaussian_data
from pyro.distributions import constraints
from torch import Tensor, nn

from ppl_vae import diagnose
from ppl_vae.distributions import Given


class Styled(nn.Module):
    """A class y, two numbers z of which the second is unused, and x = w z_1 + y, with noise."""

    def __init__(self, noise: float, conditional: bool) -> None:
        super().__init__()
        self.noise, self.conditional = noise, conditional
        self.weight = torch.tensor([1.0, 1.0, 0.5, 0.0])

    def mean(self, z: Tensor, y: Tensor) -> Tensor:
        return z[..., :1] * self.weight + y.unsqueeze(-1)

    def model(self, x: Tensor, c: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            if c is None:
                y = pyro.sample("y", dist.Categorical(torch.ones(2)))
            else:
                y = pyro.sample("c", Given(c, constraints.integer_interval(0, 1)), obs=c)
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.mean(z, y), self.noise).to_event(1), obs=x)

    def guide(self, x: Tensor, c: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(self.classes(x))) if c is None else c
            variance = 1 / (1 + self.weight.square().sum() / self.noise**2)
            centered = x - y.unsqueeze(-1)
            mean = variance * (centered @ self.weight) / self.noise**2
            loc = torch.stack([mean, torch.zeros_like(mean)], -1)
            scale = torch.stack([variance.sqrt(), torch.tensor(1.0)])
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    def classes(self, x: Tensor) -> Tensor:
        """p(y | x), exactly."""
        covariance = torch.outer(self.weight, self.weight) + self.noise**2 * torch.eye(4)
        joint = [
            dist.MultivariateNormal(torch.full((4,), float(y)), covariance).log_prob(x)
            for y in range(2)
        ]
        return torch.stack(joint, -1).softmax(-1)

    def rows(self, more: float) -> tuple[Tensor, Tensor]:
        """Data of the model, with a further factor that it does not have."""
        generator = torch.Generator().manual_seed(0)
        y = torch.randint(0, 2, (2000,), generator=generator)
        z, noise = (torch.randn(2000, k, generator=generator) for k in (2, 4))
        other = torch.tensor([1.0, -1.0, 0.0, 0.0])
        return self.mean(z, y) + self.noise * noise + more * z[:, 1:] * other, y


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize(("more", "named"), [(0.0, "surplus dimensions"), (0.6, "local optimum")])
def test_pairs_with_labels_and_classes_are_judged_by_the_data(
    conditional: bool, more: float, named: str
) -> None:
    pair = Styled(0.5, conditional)
    x, y = pair.rows(more)
    found = diagnose(pair.model, pair.guide, (x, y) if conditional else x, seed=0)
    assert found.active.tolist() == [True, False]
    assert found.cause == named


def test_a_latent_above_another_one_is_judged_with_a_note() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            above = pyro.sample("above", dist.Normal(0.0, 1.0))
            z = pyro.sample("z", dist.Normal(0 * above, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("above", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("z", dist.Normal(x / 1.25, 0.2**0.5))

    found = diagnose(model, guide, gaussian_data([1.25])[:, 0].float() - 1.0, seed=0)
    assert found.causes.keys() == {"above"}
    assert found.cause == "surplus dimensions"
    assert any(note.startswith("above may explain other latents, not x") for note in found.notes)


def test_what_no_residual_tells_is_said() -> None:
    """Shares of a whole: the decoder ignores z, and why is not known."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Dirichlet(torch.ones(3) + 0 * z.unsqueeze(-1)), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(1e-4 * x[:, 0], 1.0))

    found = diagnose(model, guide, gaussian_data([2.0, 1.0, 1.0]).float().softmax(-1), seed=0)
    assert found.cause == "ignored latent"
    assert any("would pay for more dimensions is not known: " in note for note in found.notes)
