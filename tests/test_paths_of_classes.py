"""Paths of pairs that infer a class, too: they start at E[z | x, class], not at the mean over all classes."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_vae.guides import SemiSupervised
from ppl_vae.models import SemiSupervisedVAE
from ppl_vae.networks import MLP
from ppl_vae.pairs import PairError
from ppl_vae.tasks import interpolate, traverse

ENDS = torch.tensor([2.0, 3.0])


def sign(y: Tensor) -> Tensor:
    return 2.0 * y - 1.0


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(torch.ones(2)))
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z * sign(y), 0.1), obs=x)


def guide(x: Tensor) -> None:
    """The two classes have opposite z: the mean over both is near 0, where no row is."""
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(torch.tensor([0.45, 0.55])))
        pyro.sample("z", dist.Normal(0.99 * x * sign(y), 0.1))


def test_a_path_starts_at_the_mean_given_the_class_that_is_kept() -> None:
    found = interpolate(model, guide, ENDS[:1], ENDS[1:], steps=3, seed=0)
    torch.testing.assert_close(found, 0.99 * torch.tensor([[2.0, 2.5, 3.0]]))


def test_a_traversal_starts_there_too() -> None:
    def two(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.ones(2)))
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z[..., 0] * sign(y) + z[..., 1], 0.1), obs=x)

    def of_two(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.tensor([0.45, 0.55])))
            mean = torch.stack(torch.broadcast_tensors(0.99 * x * sign(y), torch.zeros(())), -1)
            pyro.sample("z", dist.Normal(mean, 0.1).to_event(1))

    found = traverse(two, of_two, ENDS, 1, steps=3, seed=0)
    expected = 0.99 * ENDS[:, None] + torch.tensor([-3.0, 0.0, 3.0])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("vectorizes", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_class_within_a_class_is_the_most_probable_one_of_that(vectorizes: bool) -> None:
    """b is 0 with probability 0.55, and 1 given the class a = 1 that is kept."""

    def flat(value: Tensor, x: Tensor) -> Tensor:
        return (
            value if vectorizes else value.reshape(len(x))
        )  # which fails if draws are a dimension

    def nested(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Bernoulli(torch.tensor(0.55)))
            of_b = torch.tensor([[0.9, 0.1], [0.27, 0.73]])  # P(b = 0) = 0.405 + 0.1485
            b = pyro.sample("b", dist.Categorical(of_b[flat(a, x).long()]))
            pyro.sample("z", dist.Normal(x + flat(a, x) + 2.0 * flat(b, x), 0.1))

    def model_of_bits(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Bernoulli(torch.tensor(0.5)))
            b = pyro.sample("b", dist.Categorical(torch.ones(2)))
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(flat(z + 10 * a + 100 * b, x), 0.1), obs=x)

    found = interpolate(model_of_bits, nested, ENDS[:1], ENDS[1:], steps=3, seed=0)
    error = 1e-5 if vectorizes else 0.05  # 100 draws, one after the other, are averaged
    expected = torch.tensor([[2.0, 2.5, 3.0]]) + 1 + 2 + 10 + 100
    torch.testing.assert_close(found, expected, atol=error, rtol=0.0)


def test_a_style_is_the_one_given_the_most_probable_class() -> None:
    torch.manual_seed(0)
    pair = SemiSupervisedVAE((3,), 2, 4, MLP((8,))), SemiSupervised((3,), 2, 4, MLP((8,)))
    x = torch.rand(5, 3).round()
    classes = pair[1].classify(x).probs.argmax(-1)
    z = pair[1].latent_guide.encode(x, classes).mean.detach()
    z[:, 1] = 0.0
    expected = pair[0].decode(z, classes).mean.detach()
    torch.testing.assert_close(traverse(*pair, x, 1, steps=3, seed=0)[:, 1], expected)


def counted(one_hot: bool) -> tuple[Any, Any]:
    """A class as a one-hot vector, or a count, of which z is the opposite as above."""

    def index(y: Tensor) -> Tensor:
        return y[..., 1] if one_hot else y

    def prior(probability: Tensor) -> Any:
        if one_hot:
            return dist.OneHotCategorical(torch.stack([1 - probability, probability], -1))
        return dist.Poisson(probability)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", prior(torch.tensor(0.5)))
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z * sign(index(y)), 0.1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", prior(torch.tensor(0.55)))
            pyro.sample("z", dist.Normal(0.99 * x * sign(index(y)), 0.1))

    return model, guide


def test_a_one_hot_class_has_a_most_probable_value() -> None:
    found = interpolate(*counted(one_hot=True), ENDS[:1], ENDS[1:], steps=3, seed=0)
    torch.testing.assert_close(found, 0.99 * torch.tensor([[2.0, 2.5, 3.0]]))


def test_a_count_that_is_given_needs_no_most_probable_value() -> None:
    pair = counted(one_hot=False)
    with pytest.raises(PairError, match="'y' is discrete: its most probable value is not known"):
        interpolate(*pair, ENDS[:1], ENDS[1:], steps=3, seed=0)
    given = {"y": torch.tensor([2.0])}
    found = interpolate(*pair, ENDS[:1], ENDS[1:], steps=3, seed=0, given=given)
    # z = 0.99 * 3 x given a count of 2, and x = 3 z of it.
    torch.testing.assert_close(found, 9 * 0.99 * torch.tensor([[2.0, 2.5, 3.0]]))
