"""Which scale suits the data, for numbers that share theirs: whatever the order of the rows."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from all_pairs import all_pairs
from torch import Tensor

from ppl_vae import diagnose
from ppl_vae.checks import opened
from ppl_vae.diagnosis import Diagnosis
from ppl_vae.diagnosis.scales import Scales
from ppl_vae.distributions import QuantizedLogistic

Make = Callable[[Tensor], Any]


def ignoring(x_of: Make, y_of: Make | None = None) -> tuple[Any, Any]:
    """A decoder that ignores its two latents, with one observed site or two; and the prior as its guide."""

    def model(x: Tensor, y: Tensor | None = None, there: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            of_x = x_of((0 * z[..., :1]).expand(*z.shape[:-1], x.shape[1]))
            pyro.sample("x", of_x.to_event(1), obs=x)
            if y is not None and y_of is not None:
                of_y = y_of((0 * z[..., :1]).expand(*z.shape[:-1], y.shape[1]))
                of_y = of_y if there is None else of_y.mask(there.unsqueeze(-1))
                pyro.sample("y", of_y.to_event(1), obs=y)

    def guide(x: Tensor, y: Tensor | None = None, there: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            loc = 1e-4 * x[:, :2]
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    return model, guide


def five_with_factors(n: int) -> Tensor:
    """Five numbers of two factors and little noise; their standard deviations are about 1."""
    w = torch.randn(2, 5, generator=torch.Generator().manual_seed(1)) / 2**0.5
    x: Tensor = torch.randn(n, 2) @ w + 0.1 * torch.randn(n, 5)
    return x


def evidence(found: Diagnosis) -> str:
    (text,) = {each.evidence for each in found.causes.values()}
    return text


SCALED: dict[str, tuple[Callable[[Tensor, Tensor], Any], float]] = {
    "laplace": (lambda loc, scale: dist.Laplace(loc, scale), 0.02),
    "student": (lambda loc, scale: dist.StudentT(3.0, loc, scale), 0.02),
    "log-normal": (lambda loc, scale: dist.LogNormal(loc, scale), 0.02),
    "levels": (lambda loc, scale: QuantizedLogistic(loc + 0.5, scale, 64), 0.02),
}


@pytest.mark.parametrize("kind", SCALED)
def test_factors_are_those_of_the_highest_likelihood(kind: str) -> None:
    """Against the search by a library, number by number; and numbers that share a scale have one factor."""
    from scipy.optimize import minimize_scalar

    make, tolerance = SCALED[kind]
    torch.manual_seed(0)
    true, given = torch.tensor([0.05, 0.2, 0.1, 0.1]), torch.tensor([0.05, 0.05, 0.3, 0.3])
    x = make(torch.zeros(2000, 4), true).sample()
    scales = Scales()
    model, guide = ignoring(lambda loc: make(loc, given[: loc.shape[-1]]))
    with opened(model, guide, x, seed=0, progress=False) as session:
        for part in x.split(700):  # as many parts as there are
            rows = session.sample(part, 1)
            assert scales.update(rows, rows.layout, rows.model_trace.nodes["x"])
        assert not scales.update(
            *(lambda r: (r, r.layout, r.model_trace.nodes["x"]))(session.sample(x[:, :2], 1))
        )

    def best(which: Tensor) -> float:
        def loss(log_factor: float) -> float:
            scale = given[which].double() * float(torch.tensor(log_factor).exp())
            return -float(
                make(torch.zeros(()).double(), scale).log_prob(x[:, which].double()).mean()
            )

        return float(torch.tensor(minimize_scalar(loss, bounds=(-4, 4), method="bounded").x).exp())

    groups = [torch.tensor([0, 1]), torch.tensor([2, 3])]
    assert scales.groups.tolist() == [0, 0, 1, 1]
    apart, together = scales.factors(apart=True), scales.factors(apart=False)
    assert apart is not None
    assert together is not None
    expected = [best(group) for group in groups for _ in group]
    assert apart.tolist() == pytest.approx(expected, rel=tolerance)
    assert together.unique().tolist() == pytest.approx([best(torch.arange(4))], rel=tolerance)


def test_numbers_share_a_scale_if_they_do_so_in_all_rows() -> None:
    """A scale that is computed for each row belongs to its number."""
    torch.manual_seed(0)
    x = torch.randn(100, 3)
    scales = Scales()
    of_rows = torch.stack([torch.ones(100), torch.rand(100) + 0.5, torch.ones(100)], -1)
    model, guide = ignoring(lambda loc: dist.Normal(loc, of_rows))
    with opened(model, guide, x, seed=0, progress=False, whole=True) as session:
        rows = session.sample(x, 4)
        scales.update(rows, rows.layout, rows.model_trace.nodes["x"])
    first, second, third = scales.groups.tolist()
    assert first == third != second
    assert scales.factors(apart=True) is None  # residuals tell it


LIKELIHOODS: dict[str, Callable[[Tensor, Tensor | float], Any]] = {
    "normal": lambda loc, scale: dist.Normal(loc, scale),
    "laplace": lambda loc, scale: dist.Laplace(loc, scale),
}


@pytest.mark.slow(but=("normal-5",))
@pytest.mark.parametrize(
    ("kind", "others"),
    [
        ("normal", 5),
        ("laplace", 50),
        pytest.param(*("normal", 300), marks=pytest.mark.slow),
        *(
            pytest.param(*of, marks=pytest.mark.slow)
            for of in (("laplace", 5), ("normal", 50), ("laplace", 300))
        ),
    ],
)
def test_a_scale_of_few_numbers_that_is_too_large(kind: str, others: int) -> None:
    """With one factor for all, five numbers with a wrong scale were hidden by fifty with the right one."""
    torch.manual_seed(0)
    make = LIKELIHOODS[kind]
    noise = make(torch.zeros(1500, others), 1.0).sample()
    x = torch.cat([noise, five_with_factors(1500)], 1)
    scale = torch.cat([torch.ones(others), torch.full((5,), 8.0)])
    found = diagnose(*ignoring(lambda loc: make(loc, scale)), x, seed=0, progress=False)
    assert found.cause == "decoder noise"
    assert f"for 5 of {others + 5} numbers" in evidence(found)
    small = torch.cat([torch.ones(others), five_with_factors(3000).std(0)])
    found = diagnose(*ignoring(lambda loc: make(loc, small)), x, seed=0, progress=False)
    assert found.cause == "local optimum"


@pytest.mark.slow(but=("normal-5-bits", "laplace-5-normal"))
@pytest.mark.parametrize(
    ("kind", "others", "beside"), all_pairs(LIKELIHOODS, [5, 300], ["bits", "normal"])
)
def test_each_site_has_a_scale_of_its_own(kind: str, others: int, beside: str) -> None:
    torch.manual_seed(0)
    make = LIKELIHOODS[kind]
    of_x: Make = (
        (lambda loc: dist.Bernoulli(logits=loc))
        if beside == "bits"
        else lambda loc: dist.Normal(loc, 1.0)
    )
    x, y = of_x(torch.zeros(1500, others)).sample(), five_with_factors(1500)
    found = diagnose(*ignoring(of_x, lambda loc: make(loc, 8.0)), (x, y), seed=0, progress=False)
    assert found.cause == "decoder noise"
    told = re.search(
        r"is (0\.\d+) times the decoder's at 'y'; with that, (1|2) more", evidence(found)
    )
    assert told is not None, evidence(found)
    size = y.square().mean().sqrt() if kind == "normal" else y.abs().mean()
    assert 8 * float(told[1]) == pytest.approx(float(size), rel=0.06)  # two digits
    assert "'x'" not in evidence(found)


@pytest.mark.parametrize("first", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_order_of_the_rows_does_not_count(first: bool) -> None:
    """The rows without y at the front: the scale of y was taken from the first batch, which has none."""
    torch.manual_seed(0)
    n = 2000
    x, y = torch.randn(n, 5), five_with_factors(n)
    there = torch.arange(n) < 500
    there = there.flip(0) if first else there
    pair = ignoring(lambda loc: dist.Normal(loc, 1.0), lambda loc: dist.Laplace(loc, 8.0))
    found = diagnose(*pair, (x, y, there), seed=0, progress=False)
    assert found.cause == "decoder noise"
    assert "at 'y'; with that, 2 more dimensions" in evidence(found)


def test_a_healthy_scale_of_each_number_and_row() -> None:
    """Numbers of very different scales without factors: nothing is lost."""
    torch.manual_seed(0)
    scale = torch.logspace(-2, 2, 40)
    x = scale * torch.randn(1500, 40)
    found = diagnose(*ignoring(lambda loc: dist.Normal(loc, scale)), x, seed=0, progress=False)
    assert found.cause == "surplus dimensions"


@pytest.mark.slow(but=("True-1e-07",))
@pytest.mark.parametrize(
    ("apart", "wobble"),
    [
        (False, 0.0),
        (True, 1e-7),
        *(pytest.param(*of, marks=pytest.mark.slow) for of in ((False, 1e-7), (True, 0.0))),
    ],
)
def test_numbers_that_the_decoder_reproduces_hide_nothing(apart: bool, wobble: float) -> None:
    """Constant numbers, up to rounding: no scale is small enough for them, and none shows a dimension.

    Numbers that are as small as that are something else: a scale may be too large for them.
    """
    torch.manual_seed(0)
    scale = torch.cat([torch.ones(4), torch.full((4,), 0.5)]) if apart else torch.ones(8)
    x = wobble * torch.randn(800, 1).expand(800, 8).clone()
    x[0, 0] = 1e-6  # rows that are all the same are another cause
    pair = ignoring(lambda loc: dist.Normal(3.0 + loc, scale))
    assert diagnose(*pair, 3.0 + x, seed=0, progress=False).cause == "surplus dimensions"
    small = diagnose(*ignoring(lambda loc: dist.Normal(loc, scale)), x, seed=0, progress=False)
    assert small.cause == ("decoder noise" if wobble else "surplus dimensions")


def test_data_without_any_noise_show_all_their_dimensions() -> None:
    torch.manual_seed(0)
    x = torch.randn(800, 2) @ torch.randn(2, 8)
    found = diagnose(*ignoring(lambda loc: dist.Normal(loc, 20.0)), x, seed=0, progress=False)
    assert found.cause == "decoder noise"
    assert "2 more dimensions would pay" in evidence(found)


@pytest.mark.parametrize(
    ("sigma", "cause"),
    [pytest.param(100.0, "local optimum", marks=pytest.mark.slow), (1e4, "decoder noise")],
)
def test_numbers_far_from_zero_in_double_precision(sigma: float, cause: str) -> None:
    """Times in seconds since 1970: what is left of them was taken for rounding."""
    torch.manual_seed(0)
    of_time = torch.full((5,), 1.7e9, dtype=torch.float64)
    x = of_time + 300 * torch.randn(800, 1).double() + 100 * torch.randn(800, 5).double()
    model, _ = ignoring(lambda loc: dist.Normal(of_time + loc, sigma))

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(1e-7 * (x - of_time)[:, :2].float(), 1.0).to_event(1))

    assert diagnose(model, guide, x, seed=0, progress=False).cause == cause


@pytest.mark.slow(but=("normal",))
@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_a_scale_that_is_far_too_large(kind: str) -> None:
    """What is left of normal numbers is told as it is; of others, that no smaller scale was looked at."""
    torch.manual_seed(0)
    x = five_with_factors(800)
    make = LIKELIHOODS[kind]
    found = diagnose(*ignoring(lambda loc: make(loc, 1e6)), x, seed=0, progress=False)
    assert found.cause == "decoder noise"
    if kind == "laplace":
        assert "the scale that suits the data is at most 0.0001 times" in evidence(found)
        return
    told = re.search(r"what is left of the data ([\d.]+);", evidence(found))
    assert told is not None
    assert float(told[1]) == pytest.approx(float(x.square().mean().sqrt()), rel=0.02)
