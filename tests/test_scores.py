"""The score test of further latent dimensions, for each kind of likelihood."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_vae import diagnose
from ppl_vae.checks import opened
from ppl_vae.diagnosis.scales import Scales
from ppl_vae.diagnosis.scores import frequent, scores_of, why_no_scores
from ppl_vae.distributions import Ancestral, QuantizedLogistic

D = 6
"""Numbers of a row."""


def categories(e: Tensor) -> Tensor:
    """Log odds of three categories that move in different ways."""
    return e.unsqueeze(-1) * torch.tensor([1.0, -0.5, 0.2]) + torch.tensor([0.0, 0.5, -0.5])


def chained(e: Tensor) -> Any:
    """Bits that follow the one before them, with log odds that move."""

    def conditionals(x: Tensor) -> Any:
        before = torch.nn.functional.pad(x, (1, -1), value=0.5)
        return dist.Bernoulli(logits=e + 2 * before - 1).to_event(1)

    boolean = dist.constraints.boolean
    return Ancestral(conditionals, None, lambda: boolean, e.shape[:-1], e.shape[-1:])  # type: ignore[arg-type]


Make = Callable[[Tensor], Any]
KINDS: dict[str, tuple[Make, Make]] = {
    # What is moved by e, as the model has it, and a distribution of the data for a given e.
    "normal": (lambda e: dist.Normal(0.5 * e, 0.5), lambda e: dist.Normal(0.5 * e, 0.5)),
    "bits": (lambda e: dist.Bernoulli(logits=e - 1),) * 2,
    "counts": (lambda e: dist.Poisson((e + 1).exp()),) * 2,
    "categories": (lambda e: dist.Categorical(logits=categories(e)),) * 2,
    "one-hot": (lambda e: dist.OneHotCategorical(logits=categories(e)),) * 2,
    "multinomial": (lambda e: dist.Multinomial(4, logits=categories(e)),) * 2,
    "levels": (lambda e: QuantizedLogistic(0.5 + 0.1 * e, torch.tensor(0.1), 8),) * 2,
    "student": (lambda e: dist.StudentT(4.0, e, 1.0),) * 2,
    "log-normal": (lambda e: dist.LogNormal(e, 1.0),) * 2,
    "negative binomial": (lambda e: dist.NegativeBinomial(5.0, logits=e),) * 2,
    "more zeros": (lambda e: dist.ZeroInflatedPoisson((e + 2).exp(), gate=torch.tensor(0.2)),) * 2,
    "waiting times": (lambda e: dist.Gamma(3.0, e.exp()),) * 2,
    "shares": (lambda e: dist.Beta(2.0 * e.exp(), 2.0 + 0 * e),) * 2,
    "chain": (chained, lambda e: dist.Bernoulli(logits=3 * e)),
}
APART = [kind for kind in KINDS if kind != "chain"]


def kinked(e: Tensor) -> Any:
    return dist.Laplace(e, 1.0)


def rows_of(kind: str, factor: float, n: int = 600) -> Tensor:
    """Data with one factor of this strength."""
    torch.manual_seed(0)
    e = factor * torch.randn(n, 1).expand(n, D)
    x: Tensor = KINDS[kind][1](e).sample()
    return x


def event_dims(p: Any) -> int:
    return 0 if p.event_shape and p.batch_shape[-1:] != (D,) else 1


def pair(kind: str) -> tuple[Any, Any]:
    """`decoded` of a kind."""
    return decoded(KINDS[kind][0])


def decoded(p: Make) -> tuple[Any, Any]:
    """A decoder that ignores z, and the prior as its guide, with a slight dependence on x."""

    def model(x: Tensor, there: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            of_x = p(0 * z[..., :1].expand(*z.shape[:-1], D))
            of_x = of_x if there is None else of_x.mask(there)
            pyro.sample("x", of_x.to_event(event_dims(of_x)), obs=x)

    def guide(x: Tensor, there: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            loc = 1e-4 * x.reshape(len(x), -1)[:, :2].nan_to_num().float()
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    return model, guide


@pytest.mark.parametrize(
    ("kind", "masked"), [(kind, masked) for masked in (False, True) for kind in KINDS][:-1]
)
def test_scores_are_the_second_order_of_log_p(kind: str, masked: bool) -> None:
    """The mean over z ~ N(0, 1) of p(x | e + t w z), by quadrature: log p gains ((w s)^2 - w J w) t^2 / 2."""
    x = rows_of(kind, 0.2, n=40)
    there = torch.rand(40, D) < 0.6
    model, guide = pair(kind)
    data = (x, there) if masked else (x,)
    with opened(model, guide, data if masked else x, seed=0, progress=False) as session:
        rows = session.sample(session.first, 2)
        site = rows.model_trace.nodes["x"]
        assert why_no_scores(rows.layout, site) == ""
        kept = frequent(rows, rows.layout, site)
        found = scores_of(rows, rows.layout, site, kept)
    p = KINDS[kind][0]
    w = torch.randn(D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t, nodes = 1e-3, torch.tensor([-math.sqrt(3), 0.0, math.sqrt(3)], dtype=torch.float64)
    weights = torch.tensor([1 / 6, 2 / 3, 1 / 6], dtype=torch.float64).log()
    of_x = p(t * nodes[:, None, None] * w)
    each = of_x.log_prob(x if x.dtype == torch.long else x.double())
    each = torch.where(there, each, 0.0) if masked else each
    rest = p(torch.zeros(D, dtype=torch.float64)).log_prob(
        x if x.dtype == torch.long else x.double()
    )
    rest = torch.where(there, rest, 0.0) if masked else rest
    each, rest = (each, rest) if kind == "chain" else (each.sum(-1), rest.sum(-1))
    gain = float((torch.logsumexp(each + weights[:, None], 0) - rest).mean()) / t**2
    if found.score.shape[-1] > 1:  # log odds of the kept categories against the one left out
        moves = torch.tensor([1.0, -0.5, 0.2], dtype=torch.float64)
        assert kept is not None
        left_out = 3 - kept.sum(-1)
        direction = w[:, None] * (moves[kept] - moves[left_out][:, None])
    else:
        direction = w[:, None]
    along = torch.einsum("nmk,mk->n", found.score, direction)
    spent = torch.einsum("mk,mkl,ml->", direction, found.information, direction)
    assert gain == pytest.approx(float((along.square().mean() - spent) / 2), rel=2e-3, abs=2e-3)


SCALED: dict[str, Callable[[Tensor, float], Any]] = {
    # Locations e, and a scale.
    "normal": lambda e, s: dist.Normal(e, s),
    "normal, dependent": lambda e, s: dist.MultivariateNormal(e, s**2 * (0.5 * torch.eye(D) + 0.1)),
    "laplace": lambda e, s: dist.Laplace(e, s),
    "student": lambda e, s: dist.StudentT(4.0, e, s),
    "cauchy": lambda e, s: dist.Cauchy(e, s),
    "log-normal": lambda e, s: dist.LogNormal(e, s),
    "moved": lambda e, s: dist.TransformedDistribution(
        dist.Laplace(e, s), dist.transforms.AffineTransform(3.0, 2.0)
    ),
    "levels": lambda e, s: QuantizedLogistic(0.5 + 0.1 * e, torch.tensor(0.1) * s, 64),
}


@pytest.mark.slow(only=("levels-0.3",))
@pytest.mark.parametrize(
    ("kind", "factor"),
    [
        pytest.param(kind, factor, marks=() if factor or "normal" in kind else pytest.mark.slow)
        for kind in SCALED
        for factor in (0.0, 0.3)
    ],
)
def test_a_wide_scale_hides_what_the_data_would_pay_for(kind: str, factor: float) -> None:
    """With a fifth of the decoder's scale the data have a factor, or none."""
    torch.manual_seed(0)
    e = factor * torch.randn(600, 1).expand(600, D)
    x = SCALED[kind](e, 0.2).sample()
    found = diagnose(*decoded(lambda e: SCALED[kind](e, 1.5)), x, seed=0)
    # A covariance models what numbers share.
    nothing = "strong decoder" if kind == "normal, dependent" else "surplus dimensions"
    assert found.cause == ("decoder noise" if factor else nothing)
    assert not any("not known" in note for note in found.notes)
    # At a scale that suits the data, the data would pay as it is.
    if factor:
        suits = diagnose(*decoded(lambda e: SCALED[kind](e, 0.25)), x, seed=0)
        assert suits.cause == ("local optimum" if nothing == "surplus dimensions" else nothing)


def test_the_scale_that_suits_the_data_is_named() -> None:
    """For Laplace numbers it is the mean of |x|; bits beside them have none."""
    torch.manual_seed(0)
    z = torch.randn(600, 1)
    x, bits = dist.Laplace(0.3 * z.expand(600, D), 0.2).sample(), (torch.rand(600, D) < 0.5).float()

    def model(x: Tensor, bits: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            still = 0 * z[..., :1].expand(*z.shape[:-1], D)
            pyro.sample("x", dist.Laplace(still, 4.0).to_event(1), obs=x)
            pyro.sample("bits", dist.Bernoulli(logits=still).to_event(1), obs=bits)

    def guide(x: Tensor, bits: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(1e-4 * x[:, :2], 1.0).to_event(1))

    found = diagnose(model, guide, (x, bits), seed=0)
    assert found.cause == "decoder noise"
    (evidence,) = {each.evidence for each in found.causes.values()}
    shown = re.search(r"is ([\d.]+) times the decoder's at 'x'; with that, (1|2) more", evidence)
    assert shown is not None
    assert 4 * float(shown[1]) == pytest.approx(float(x.abs().mean()), rel=0.03)


@pytest.mark.parametrize(("data", "density"), [("laplace", 0.5), ("normal", 0.3989)])
@pytest.mark.parametrize("scale", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("kind", ["laplace", "asymmetric"])
def test_information_of_densities_with_a_kink(
    data: str, density: float, scale: float, kind: str
) -> None:
    """- E d^2 log p(x | loc) / d loc^2 is 2 f(0) scale in units of the scale, with the density f of x - loc."""
    torch.manual_seed(0)
    x = (dist.Laplace(0.0, 1.0) if data == "laplace" else dist.Normal(0.0, 1.0)).sample((4000, D))
    one = torch.tensor(1.0)

    def wide(e: Tensor) -> Any:
        if kind == "laplace":
            return dist.Laplace(e, scale)
        return dist.AsymmetricLaplace(e, scale * one, one)

    with opened(*decoded(wide), x, seed=0, progress=False) as session:
        rows = session.sample(x, 1)
        site = rows.model_trace.nodes["x"]
        scales = Scales()
        scales.update(rows, rows.layout, site)
        factors = scales.factors(apart=True)
        found = scores_of(rows, rows.layout, site, None, factors)
    assert factors is not None
    assert factors.tolist() == pytest.approx([float(x.abs().mean()) / scale] * D, rel=0.01)
    # The step is finite: a normal density falls less within it than that of a Laplace distribution.
    higher = 1.0 if data == "laplace" else 1 / 0.92
    assert float(found.information.mean()) == pytest.approx(2 * density * scale * higher, rel=0.03)


@pytest.mark.parametrize(("factor", "cause"), [(0.0, "surplus dimensions"), (1.0, "local optimum")])
def test_absolute_errors(factor: float, cause: str) -> None:
    """A density with a kink has no second derivative: it seemed that any dimension would pay."""
    torch.manual_seed(0)
    x = dist.Laplace(factor * torch.randn(600, 1).expand(600, D), 1.0).sample()
    assert diagnose(*decoded(kinked), x, seed=0).cause == cause


USUAL = ("normal", "bits", "categories")


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=() if k in USUAL else pytest.mark.slow) for k in APART]
)
@pytest.mark.parametrize(("factor", "cause"), [(0.0, "surplus dimensions"), (1.0, "local optimum")])
def test_the_data_tell_whether_a_dimension_would_pay(kind: str, factor: float, cause: str) -> None:
    found = diagnose(*pair(kind), rows_of(kind, factor), seed=0)
    assert found.cause == cause
    assert not any("not known" in note for note in found.notes)


@pytest.mark.parametrize(
    "kind", ["normal", pytest.param("bits", marks=pytest.mark.slow), "categories"]
)
@pytest.mark.parametrize(("factor", "cause"), [(0.0, "surplus dimensions"), (1.2, "local optimum")])
def test_only_what_is_there_counts(kind: str, factor: float, cause: str) -> None:
    """A third of the numbers is missing, and holds anything."""
    x = rows_of(kind, factor)
    there = torch.rand(len(x), D) > 1 / 3
    wrong = torch.where(there, x, torch.full_like(x, 2 if kind == "categories" else 1))
    found = diagnose(*pair(kind), (wrong, there), seed=0)
    assert found.cause == cause
    assert not any("not known" in note for note in found.notes)


def test_missing_numbers_make_a_dimension_pay_less() -> None:
    """Numbers that are there in a share r of the rows: eigenvalue 1 + r (D - 1) c for correlations c, exactly.

    Its diagonal is 1: what is seen varies as much as the noise. The rest is seen in pairs, r^2, in units r.
    """
    n, share, c = 20000, 0.5, 0.4
    torch.manual_seed(0)
    z, noise = torch.randn(n, 1), torch.randn(n, D)
    x = 0.5 * (c**0.5 * z + (1 - c) ** 0.5 * noise)
    there = torch.rand(n, D) < share
    found = diagnose(*pair("normal"), (x[:1000], there[:1000]), seed=0)
    (evidence,) = {each.evidence for each in found.causes.values()}
    shown = re.search(r"vary by up to ([\d.]+) times", evidence)
    assert shown is not None
    assert float(shown[1]) == pytest.approx(1 + share * (D - 1) * c, rel=0.1)


@pytest.mark.slow
def test_many_categories_are_looked_at_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """40 numbers of 30 categories: the frequent ones show the factor."""
    torch.manual_seed(0)
    monkeypatch.setattr("ppl_vae.diagnosis.scores.MOST_COLUMNS", 400)
    n, numbers, size = 200, 40, 30
    slope = torch.randn(numbers, size)
    x = dist.Categorical(logits=2 * torch.randn(n, 1, 1) * slope).sample()
    rates = torch.nn.functional.one_hot(x, size).float().mean(0)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            logits = 0 * z.unsqueeze(-1) * slope + (rates + 1e-3).log()
            pyro.sample("x", dist.Categorical(logits=logits).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(1e-4 * x[:, :1].float(), 1.0).to_event(1))

    assert diagnose(model, guide, x, seed=0).cause == "local optimum"
    shuffled = x.gather(0, torch.rand(n, numbers).argsort(0))
    assert diagnose(model, guide, shuffled, seed=0).cause == "surplus dimensions"


def test_data_that_vary_more_than_the_likelihood_allows_are_no_local_optimum_of_a_large_beta() -> (
    None
):
    """Counts with a factor e^(2 e): the score's variance exceeds beta, though next to no weight pays."""
    torch.manual_seed(0)
    e = 2.0 * torch.randn(600, 1).expand(600, D)
    x = dist.Poisson((e + 1).exp()).sample()
    rate = x.mean(0).log()
    found = diagnose(*decoded(lambda z: dist.Poisson((z + rate).exp())), x, beta=60.0, seed=0)
    assert found.cause == "large beta"
    (code,) = {each.code for each in found.causes.values()}
    assert "ELBO(beta=ppl_vae.objectives.LinearWarmup(epochs=100))" in code  # up to 1
