"""Decoders that read x: those that predict each number from others, and those that only scale by the row."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_vae import diagnose
from ppl_vae.checks import opened
from ppl_vae.diagnosis.decoder import models_dependencies
from ppl_vae.guides import MeanField
from ppl_vae.likelihoods import Bernoulli, Categorical
from ppl_vae.models import VAE
from ppl_vae.networks import MLP, AutoregressiveDecoder

D = 8


def negative_binomial(mean: Tensor) -> Any:
    return dist.NegativeBinomial(10.0, logits=(mean / 10.0).log())


SCALED: dict[str, Any] = {
    "Poisson": dist.Poisson,
    "negative binomial": negative_binomial,
    "in part": lambda mean: dist.ZeroInflatedPoisson(mean, gate=torch.tensor(0.1)),
    "normal": lambda mean: dist.Normal(mean, 3.0),
}


def counts(kind: str, factor: float) -> Tensor:
    """Counts of rows of sizes between 20 and 400, with shares that a factor moves."""
    torch.manual_seed(0)
    size = torch.exp(torch.empty(500, 1).uniform_(3.0, 6.0))
    logits = factor * torch.randn(500, 1) * torch.linspace(-1.0, 1.0, D)
    x: Tensor = SCALED[kind](size * logits.softmax(-1)).sample()
    return x


def scaled(kind: str) -> tuple[Any, Any]:
    """A decoder that ignores z: the size of the row, times shares that are all the same."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            shares = (0 * z[..., :1].expand(*z.shape[:-1], D)).softmax(-1)
            size = x.sum(-1, keepdim=True) + 1e-3
            pyro.sample("x", SCALED[kind](size * shares).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(1e-5 * x[:, :2], 1.0).to_event(1))

    return model, guide


@pytest.mark.slow(but=("0.0-in part", "0.5-Poisson"))
@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize("factor", [0.0, 0.5])
def test_a_decoder_that_scales_by_the_row_is_not_strong(kind: str, factor: float) -> None:
    """Given z, its numbers depend on each other by the size of the row, which explains no shares."""
    model, guide = scaled(kind)
    x = counts(kind, factor)
    with opened(model, guide, x, seed=0, progress=False) as session:
        assert models_dependencies(session).found is False
    found = diagnose(model, guide, x, seed=0)
    assert found.cause != "strong decoder"
    if kind in ("Poisson", "negative binomial"):
        assert found.cause == ("local optimum" if factor else "surplus dimensions")


class Reading:
    """Each number is normal about a share of the one before it; `order` says which are before."""

    def __init__(self, backwards: bool, scale: bool) -> None:
        self.backwards, self.scale = backwards, scale

    def __call__(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            before = torch.cat([0 * x[:, :1], x[:, :-1]], 1)
            after = torch.cat([x[:, 1:], 0 * x[:, :1]], 1)
            mean = 0.5 * (after if self.backwards else before) + 0 * z[..., :1]
            noise = 1 + before.abs() if self.scale and not self.backwards else 1.0
            pyro.sample("x", dist.Normal(mean, noise).to_event(1), obs=x)


def guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.0 * x[:, :2], 1.0).to_event(1))


@pytest.mark.parametrize(("backwards", "scale"), [(False, False), (True, False), (False, True)])
def test_a_decoder_that_reads_other_numbers_is_strong(backwards: bool, scale: bool) -> None:
    with opened(Reading(backwards, scale), guide, torch.randn(100, D), seed=0) as session:
        assert models_dependencies(session).found is True


@pytest.mark.parametrize("categories", [0, 4])
def test_the_decoders_of_the_library_are_strong(categories: int) -> None:
    torch.manual_seed(0)
    network = (
        AutoregressiveDecoder(categories=categories) if categories else AutoregressiveDecoder()
    )
    shape = (D,) if categories else (1, 4, 4)
    likelihood = Categorical(categories) if categories else Bernoulli()
    model = VAE(shape, 2, network, likelihood)
    x = torch.randint(0, categories or 2, (60, *shape))
    x = x if categories else x.float()
    encoder = MLP((8,)) if not categories else network
    with opened(model, MeanField(shape, 2, encoder), x, seed=0, progress=False) as session:
        assert models_dependencies(session).found is True


class Written:
    """Bits, of which each follows the one before it, or none; and how the program observes them."""

    def __init__(self, how: str, chain: bool) -> None:
        self.how, self.chain = how, chain

    def bits(self, x: Tensor) -> Tensor:
        return x / 255 if self.how == "scaled" else x

    def __call__(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            bits = self.bits(x)
            before = torch.nn.functional.pad(bits, (1, -1), value=0.5)
            logits = (2.0 * (2 * before - 1) if self.chain else 0 * before) + 0 * z[..., :1]
            if self.how == "steps":
                for t in range(D):
                    pyro.sample(f"x_{t}", dist.Bernoulli(logits=logits[..., t]), obs=bits[:, t])
            elif self.how == "halves":
                first = dist.Bernoulli(logits=logits[..., :3]).to_event(1)
                second = dist.Bernoulli(logits=logits[..., 3:]).to_event(1)
                pyro.sample("first", first, obs=bits[:, :3])
                pyro.sample("second", second, obs=bits[:, 3:])
            elif self.how == "centered":
                rest = bits - bits.mean(1, keepdim=True)
                pyro.sample("x", dist.Normal(logits, 1.0).to_event(1), obs=rest)
            else:
                pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=bits)


def of_written(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(1e-4 * x[:, :2].float() / 255, 1.0).to_event(1))


@pytest.mark.slow(but=("True-steps", "False-halves"))
@pytest.mark.parametrize("how", ["whole", "scaled", "steps", "halves"])
@pytest.mark.parametrize("chain", [True, False])
def test_however_a_program_observes_its_numbers(how: str, chain: bool) -> None:
    """In one site or in many, as they are or scaled: before, x had to be observed as it is in one site."""
    torch.manual_seed(0)
    x = (torch.rand(300, D) < 0.5).float() * (255 if how == "scaled" else 1)
    found = diagnose(Written(how, chain), of_written, x, seed=0, progress=False)
    assert found.cause == ("strong decoder" if chain else "surplus dimensions")
    assert not any("strong decoder" in note for note in found.notes)


def test_numbers_that_are_mixed_before_they_are_observed_are_not_judged() -> None:
    """x less its mean: numbers that are independent given z depend on each other as functions of x."""
    torch.manual_seed(0)
    x = torch.randn(300, D)
    with opened(Written("centered", False), of_written, x, seed=0) as session:
        assert models_dependencies(session).unknown == "no site observes numbers of x one by one"
    found = diagnose(Written("centered", False), of_written, x, seed=0, progress=False)
    assert found.cause == "surplus dimensions"
    assert any("it is not known whether the decoder" in note for note in found.notes)


def test_a_label_beside_x_does_not_hide_the_dependence() -> None:
    """One number has no others to depend on; that it was one left the whole unknown."""

    def model(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            before = torch.nn.functional.pad(x, (1, -1))
            pyro.sample("x", dist.Normal(0.5 * before + 0 * z[..., :1], 1.0).to_event(1), obs=x)
            pyro.sample("y", dist.Normal(0 * z[..., 0], 1.0), obs=y)

    def of_both(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0 * x[:, :2], 1.0).to_event(1))

    rows = torch.randn(50, D), torch.randn(50)
    with opened(model, of_both, rows, seed=0) as session:
        assert models_dependencies(session).found is True


@pytest.mark.parametrize("chain", [True, False])
def test_columns_that_are_arguments_of_their_own(chain: bool) -> None:
    """One argument that depends on another one may be a label's picture, or a chain: a note says so."""

    def model(a: Tensor, b: Tensor, c: Tensor) -> None:
        with pyro.plate("data", len(a)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("a", dist.Normal(0 * z[..., 0], 1.0), obs=a)
            pyro.sample("b", dist.Normal(0 * z[..., 0], 1.0), obs=b)
            pyro.sample("c", dist.Normal((0.9 if chain else 0.0) * b, 1.0), obs=c)

    def of_columns(a: Tensor, b: Tensor, c: Tensor) -> None:
        with pyro.plate("data", len(a)):
            loc = 1e-4 * torch.stack([a, b], -1)
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    torch.manual_seed(0)
    a, b, c = torch.randn(3, 400)
    rows = a, b, (0.9 * b + c if chain else c)
    found = diagnose(model, of_columns, rows, seed=0, progress=False)
    assert found.cause == "surplus dimensions"
    told = [note for note in found.notes if "one argument of the model depends on another" in note]
    assert len(told) == chain


def test_what_may_hide_a_chain_is_said() -> None:
    """A decoder that scales by the size of the row, and reads the number before, too."""
    model, guide = scaled("Poisson")
    found = diagnose(model, guide, counts("Poisson", 0.5), seed=0, progress=False)
    assert found.cause == "local optimum"
    assert any("as by the size of the row" in note for note in found.notes)
