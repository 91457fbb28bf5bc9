"""What check() finds in the data, by the site's name and in plain words."""

from __future__ import annotations

from typing import Any

import programs
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from reports import X, error, guide, model, warning
from torch import Tensor, nn

from ppl_vae import check
from ppl_vae.checks import check_data
from ppl_vae.pairs import Pair, PairError


@pytest.mark.parametrize(
    ("likelihood", "x", "words"),
    [
        (dist.Bernoulli(0.3), torch.full((12,), 0.5), ["Bernoulli", "0 and 1", "binarize"]),
        (
            dist.Binomial(4, torch.tensor(0.3)),
            torch.full((12,), 5.0),
            ["Binomial", "0 to 4", "(5 to 5)"],
        ),
        (dist.Beta(2.0, 2.0), torch.linspace(0, 1, 12), ["Beta", "open interval"]),
        (dist.Poisson(2.0), torch.full((12,), -1.0), ["Poisson", "another likelihood"]),
        (dist.LogNormal(0.0, 1.0), torch.full((12,), -1.0), ["LogNormal"]),
    ],
)
def test_data_outside_of_the_support(likelihood: Any, x: Tensor, words: list[str]) -> None:
    def of(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("pixels", likelihood, obs=x)

    error(check(of, programs.normal_guide(1.0, 1.0), x), "pixels", "outside of the support", *words)


def also(observe: Any) -> Any:
    """The model, which also observes something in the plate over the rows."""

    def of(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
            observe(x, z)

    return of


def vector(z: Tensor) -> Any:
    return dist.Normal(z, 1.0).to_event(1)


@pytest.mark.parametrize(
    ("observe", "shape"),
    [
        (lambda x, z: pyro.sample("m", vector(z), obs=x.mean(0)), "(3,)"),
        (lambda x, z: pyro.sample("m", vector(z), obs=x.mean(0, keepdim=True)), "(1, 3)"),
        (lambda x, z: pyro.sample("m", dist.Normal(z[..., 0], 1.0), obs=x.mean()), "()"),
        (
            lambda x, z: pyro.sample("m", dist.Bernoulli(logits=z[..., 0]), obs=torch.tensor(1.0)),
            "()",
        ),
    ],
)
def test_a_value_that_is_the_same_for_all_rows(observe: Any, shape: str) -> None:
    report = check(also(observe), guide, X)
    warning(
        report, "m", f"of shape {shape}", "no dimension of rows", "(x.mean(0))", "not independent"
    )
    assert check(also(observe), guide, X[:1]).ok  # a single row is its own mean


def test_the_same_value_in_a_plate_of_columns() -> None:
    def of(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            with pyro.plate("columns", 3, dim=-1):
                value = x if rows else x.mean(0)
                pyro.sample("x", dist.Normal(z.squeeze(-2), 1.0), obs=value)

    def q(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(x.unsqueeze(-2), 1.0).to_event(1))

    rows = True
    assert check(of, q, X).ok
    rows = False
    warning(check(of, q, X), "x", "no dimension of rows")


def test_the_mean_of_the_rows_outside_of_their_plate() -> None:
    def of(x: Tensor) -> None:
        model(x)
        pyro.sample("m", dist.Normal(torch.zeros(3), 1.0).to_event(1), obs=x.mean(0))

    error(check(of, guide, X), "x", "'m'", "not inside a plate over the 12 rows")


@pytest.mark.parametrize(
    "observe",
    [
        lambda x, z: pyro.sample("m", vector(z), obs=x - x.mean(0)),
        lambda x, z: pyro.sample("m", dist.Normal(0.0, 1.0), obs=torch.zeros(len(x))),
        lambda x, z: pyro.factor("m", z.sum(-1)),
        lambda x, z: pyro.factor("m", torch.tensor(-1.0)),
        lambda x, z: pyro.sample("m", dist.Normal(0.0, 1.0).mask(False), obs=torch.tensor(0.0)),
    ],
)
def test_values_of_rows_factors_and_what_is_masked_are_meant(observe: Any) -> None:
    assert str(check(also(observe), guide, X)) == "no problems found"


def test_data_that_are_nan() -> None:
    x = X.clone()
    x[3, 1] = x[3, 2] = x[7, 0] = torch.nan
    error(check(model, lambda x: guide(x.nan_to_num()), x), "x", "NaN in 2 of the 12 rows")


@pytest.mark.parametrize(
    ("dtype", "words"),
    [
        (torch.uint8, "x is torch.uint8, the parameters are torch.float32: pass x.float()"),
        (torch.float64, "x is torch.float64, the parameters are torch.float32: pass x.float()"),
    ],
)
def test_data_of_another_type_than_the_parameters(dtype: torch.dtype, words: str) -> None:
    encoder = nn.Linear(3, 3)

    def encode(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), 1.0).to_event(1))

    error(check(model, encode, X.abs().to(dtype)), "guide", "the guide raised RuntimeError", words)
    wrong_shape = check(model, encode, X[:, :2]).errors[0].message
    assert "pass x" not in wrong_shape


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
@pytest.mark.parametrize("kind", ["Bernoulli", "ContinuousBernoulli", "Normal"])
@pytest.mark.parametrize("as_factor", [False, True])
def test_whole_numbers_for_a_density_of_floating_point_numbers(
    dtype: torch.dtype, kind: str, as_factor: bool
) -> None:
    """The dtype is named, not the shape, which is right; the remedy works."""

    def observe(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            own = dist.Normal(z, 1.0) if kind == "Normal" else getattr(dist, kind)(logits=z)
            if as_factor:
                pyro.factor("x", own.log_prob(x).sum(-1))
            else:
                pyro.sample("x", own.to_event(1), obs=x)

    def encode(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.float(), 1.0).to_event(1))

    x = (X > 0).to(dtype)
    report = check(observe, encode, x)
    if kind == "Normal" and dtype is not torch.bool:
        assert report
        return
    remedy = r"pass x.float() (numpy, pandas: x.astype('float32'))"
    error(report, "model" if as_factor else "x", str(dtype), remedy)
    assert "shape (12, 3) does not" not in str(report)
    assert check(observe, encode, x.float())


def test_a_density_of_another_dtype() -> None:
    def joint(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            wide = dist.LowRankMultivariateNormal(torch.zeros(3), torch.ones(3, 1), torch.ones(3))
            z = pyro.sample("z", dist.Normal(torch.zeros(3).double(), 1.0).to_event(1))
            pyro.sample("x", wide, obs=x + 0 * z)

    def encode(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.double(), 1.0).to_event(1))

    words = "its value is torch.float64, but the density of LowRankMultivariateNormal needs torch.float32"
    error(check(joint, encode, X), "x", words, "pass x.float()")


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (X[:, :2], "the guide raised RuntimeError on a batch of shape"),
        (X.double().round(), r"pass x\.float\(\)"),
        (torch.full((4, 3), torch.nan), "'x' are NaN in 4 of the 4 rows"),
        (torch.full((4, 3), torch.inf), "'x' are infinite in 4 of the 4 rows"),
        (X, "outside of the support of Bernoulli"),
    ],
)
def test_a_batch_that_cannot_be_used_is_refused_in_plain_words(batch: Tensor, words: str) -> None:
    encoder, decoder = nn.Linear(3, 2), nn.Linear(2, 3)

    def encode(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), 1.0, validate_args=False).to_event(1))

    def decode(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    pair = Pair(decode, encode)
    before = torch.get_rng_state()
    with pair.scope():
        check_data(pair, (X > 0).float())
        with pytest.raises(PairError, match=words):
            check_data(pair, batch)
    assert torch.equal(torch.get_rng_state(), before)


def test_data_that_are_masked_may_be_anything() -> None:
    x = (X > 0).float()
    x[:, 0] = 9.0
    seen: Any = (x != 9.0).T

    def of(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            with pyro.plate("columns", 3, dim=-2), poutine.mask(mask=seen):
                pyro.sample("x", dist.Bernoulli(logits=z.T), obs=x.T)

    assert check(of, guide, x).ok


def test_a_density_that_is_not_finite() -> None:
    def broken(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            scale = (x[:1, :1] * 0 - 1.0).sqrt()
            pyro.sample("pixels", dist.Normal(z, scale).to_event(1), obs=x)

    report = check(broken, guide, X)
    assert {p.site for p in report.errors} == {"pixels"}
    assert "'pixels' in the model" in str(report)
