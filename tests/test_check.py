"""check(): each thing that it promises to find, by the site's name and in plain words; nothing is changed."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import programs
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoNormal
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

from ppl_vae import check, fit, objectives
from ppl_vae.checks import PairWarning, Problem, Report, check_data, devices
from ppl_vae.guides import MeanField
from ppl_vae.models import MixtureOfPCA
from ppl_vae.networks import MLP
from ppl_vae.pairs import Batches, Pair, PairError

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.7).to_event(1))


def only(report: Report) -> Problem:
    assert len(report.problems) == 1, str(report)
    return report.problems[0]


def found(report: Report, severity: str, site: str, words: tuple[str, ...]) -> None:
    problem = only(report)
    assert problem.severity == severity
    assert problem.site == site
    for word in words:
        assert word in problem.message, problem.message
    assert not report.ok


def error(report: Report, site: str, *words: str) -> None:
    found(report, "error", site, words)
    assert not report
    with pytest.raises(PairError, match=r".+"):
        report.raise_errors()


def warning(report: Report, site: str, *words: str) -> None:
    found(report, "warning", site, words)
    assert report
    report.raise_errors()  # does nothing


def test_a_good_pair() -> None:
    report = check(model, guide, X, ragged=True, max_epochs=3)
    assert report
    assert report.ok
    assert str(report) == "no problems found"
    assert report.errors == ()


# -- names -----------------------------------------------------------------------------------------------


def test_a_latent_that_the_guide_lacks() -> None:
    def other(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("code", dist.Normal(x / 2, 0.7).to_event(1))

    report = check(model, other, X)
    assert [p.site for p in report.problems] == ["z", "code"]
    assert "'z' is not sampled by the guide, which samples 'code'" in report.problems[0].message
    assert "guide's site 'code' is not in the model, which has 'z'" in report.problems[1].message


def test_a_latent_that_the_model_lacks() -> None:
    def more(x: Tensor) -> None:
        guide(x)
        with pyro.plate("more", len(x)):
            pyro.sample("u", dist.Normal(torch.zeros(()), 1.0))

    error(
        check(model, more, X),
        "u",
        "guide's site 'u' is not in the model",
        "reverse model r(u | z, x)",
    )


def test_an_auxiliary_latent_is_meant() -> None:
    """With a reverse model; without one, the mark alone does not make it right."""

    def more(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(torch.zeros(()), 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(x / 2 + 0 * u[:, None], 0.7).to_event(1))

    def reverse(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("u", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    error(check(model, more, X), "u", "guide's site 'u' is not in the model", "reverse model")
    assert check(reverse, more, X, objective=objectives.TraceELBO()).ok


def test_an_enumerated_latent_is_meant() -> None:
    def mixture(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
            loc = torch.tensor([-1.0, 1.0])[k]
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    def of_z(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, 0] / 2, 0.7))

    assert check(mixture, of_z, X).ok


def test_a_latent_that_the_model_observes() -> None:
    def both(x: Tensor) -> None:
        guide(x)
        with pyro.plate("again", len(x)):
            pyro.sample("x", dist.Normal(x, 1.0).to_event(1))

    report = check(model, both, X)
    assert "x" in {p.site for p in report.errors}
    assert "'x' is sampled by the guide but observed in the model" in str(report)


def test_a_model_that_observes_nothing() -> None:
    def prior(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    error(check(prior, guide, X), "", "observes nothing", "obs=x")


def test_a_model_without_latents() -> None:
    def regression(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1), obs=x)

    assert check(regression, lambda x: None, X).ok  # nothing to infer, but much to learn
    error(check(regression, guide, X), "z", "which has no latents")


# -- shapes and plates -----------------------------------------------------------------------------------


def test_a_missing_batch_plate() -> None:
    def bare(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 3), 1.0).to_event(2))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(2), obs=x)

    def of_bare(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(x / 2, 0.7).to_event(2))

    report = check(bare, of_bare, X)
    error(report, "x", "not inside a plate over the 12 rows", "there is none", "pyro.plate(")


def test_a_plate_of_another_size() -> None:
    def wrong(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("columns", 3):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[0])

    def of_wrong(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(x[0] / 2, 0.7).to_event(1))

    error(check(wrong, of_wrong, X), "x", "'columns' of size 3")


def test_a_latent_that_lacks_its_event_dimension() -> None:
    def wide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(12, 12), 1.0))
            pyro.sample("x", dist.Normal(z[:, :3], 1.0).to_event(1), obs=x)

    def of_wide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(12, 12), 1.0))

    report = check(wide, of_wide, X)
    assert {p.site for p in report.errors} == {"z"}
    assert "'data' (size 12, dim -1)" in str(report)
    assert "add .to_event(1)" in str(report)


def test_event_shapes_that_differ() -> None:
    def summing(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0).expand([3]).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x[:, 0])

    def narrow(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :1], 0.7).to_event(1))

    words = ["event shape (3,) in the model and (1,) in the guide"]
    error(check(summing, narrow, X), "z", *words)


def test_plates_that_differ() -> None:
    def elsewhere(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.7).to_event(1))

    error(check(model, elsewhere, X), "z", "'data' in the model", "'rows' in the guide")


def test_latents_of_rows_drawn_jointly() -> None:
    def joint(x: Tensor) -> None:
        eps = pyro.sample(
            "eps",
            dist.Normal(torch.zeros(len(x), 3), 1.0).to_event(2),
            infer={"is_auxiliary": True},
        )
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(eps, event_dim=1))

    error(check(model, joint, X), "", "jointly at site 'eps'", "plate 'data'")


def test_a_program_that_raises() -> None:
    def broken(x: Tensor) -> None:
        raise KeyError("weights")

    error(check(broken, guide, X), "model", "the model raised KeyError", "(12, 3)", "weights")
    error(check(model, broken, X), "guide", "the guide raised KeyError")


def test_a_pair_that_cannot_take_a_shorter_batch() -> None:
    def of_all_rows(x: Tensor) -> None:
        loc = pyro.param("loc", lambda: torch.zeros(12, 3))
        with pyro.plate("data", 12):
            pyro.sample("z", dist.Normal(loc, 0.7).to_event(1))

    assert check(model, of_all_rows, X).ok
    report = check(model, of_all_rows, X, ragged=True)
    assert "not on the 11 rows" in only(report).message


# -- data ------------------------------------------------------------------------------------------------


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


# -- objectives ------------------------------------------------------------------------------------------


def discrete_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Bernoulli(0.5 * torch.ones(())))
        pyro.sample("x", dist.Normal(k, 1.0), obs=x[:, 0])


def discrete_guide(x: Tensor) -> None:
    logits = pyro.param("logits", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("k", dist.Bernoulli(logits=logits))


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        (objectives.MeanFieldELBO(), ["MeanFieldELBO needs one", "EnumELBO"]),
        (objectives.TraceELBO(free_bits=0.1), ["free bits needs one"]),
    ],
)
def test_a_latent_that_is_not_reparameterized(objective: Any, words: list[str]) -> None:
    assert check(discrete_model, discrete_guide, X).ok
    assert check(discrete_model, discrete_guide, X, objective=objectives.TraceELBO()).ok
    assert check(
        discrete_model, discrete_guide, X, objective=objectives.ImportanceWeightedELBO()
    ).ok
    report = check(discrete_model, discrete_guide, X, objective=objective)
    assert report.errors[0].site == "k"
    for word in ["Bernoulli", "no reparameterized", *words]:
        assert word in report.errors[0].message


def chain(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        top = pyro.sample("top", dist.Normal(torch.zeros(()), 1.0))
        low = pyro.sample("low", dist.Normal(top, 1.0))
        pyro.sample("x", dist.Normal(low, 1.0), obs=x[:, 0])


def test_a_guide_whose_sites_depend_on_each_other_the_other_way() -> None:
    def bottom_up(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            low = pyro.sample("low", dist.Normal(x[:, 0], 1.0))
            pyro.sample("top", dist.Normal(low, 1.0))

    def top_down(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", dist.Normal(x[:, 0], 1.0))
            pyro.sample("low", dist.Normal(top, 1.0))

    def independent(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("low", dist.Normal(x[:, 0], 1.0))
            pyro.sample("top", dist.Normal(x[:, 0], 1.0))

    report = check(chain, bottom_up, X, objective=objectives.MeanFieldELBO())
    error(report, "low", "analytic KL of site 'low' is wrong", "'top'", "TraceELBO")
    assert check(chain, bottom_up, X).ok  # the default chooses what is right
    for fine in (top_down, independent):
        assert check(chain, fine, X, objective=objectives.MeanFieldELBO()).ok


@pytest.mark.parametrize(
    "beta", [objectives.LinearWarmup(10), objectives.Cyclical(period=4, cycles=3)]
)
def test_a_warm_up_longer_than_the_training(beta: Any) -> None:
    report = check(model, guide, X, objective=objectives.ELBO(beta=beta), max_epochs=9)
    warning(report, "max_epochs", f"{beta.warmup_epochs:g} epochs", "ends after 9")
    assert check(model, guide, X, objective=objectives.ELBO(beta=beta), max_epochs=10).ok


class Networks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(3, 3)
        self.unused = nn.Linear(3, 3, bias=False)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.used(x), 0.7).to_event(1))


def test_parameters_without_a_gradient() -> None:
    warning(check(model, Networks(), X), "guide.unused.weight", "receives no gradient")

    def cut(x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        loc = pyro.param("loc", torch.tensor(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x * loc.detach(), scale).to_event(1))

    warning(check(model, cut, X), "param.loc", "'param.loc' receives no gradient")


def test_pyro_params_of_one_name() -> None:
    class Model(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.scale = PyroParam(torch.tensor(1.0))

        def forward(self, x: Tensor) -> None:
            scale: Any = self.scale
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(3), scale).to_event(1))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    class Guide(PyroModule):
        def __init__(self, name: str = "") -> None:
            super().__init__(name=name)
            self.scale = PyroParam(torch.tensor(0.5))

        def forward(self, x: Tensor) -> None:
            scale: Any = self.scale
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x, scale).to_event(1))

    error(check(Model(), Guide(), X), "scale", "PyroParam called 'scale'", 'name="guide"')
    assert check(Model(), Guide(name="guide"), X).ok


# -- nothing is changed ----------------------------------------------------------------------------------


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(3, 3)
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x: Tensor) -> None:
        assert isinstance(self.calls, Tensor)
        self.calls += 1
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.head(self.dropout(self.norm(x))), 1.0).to_event(1))


@pytest.mark.parametrize("good", [True, False])
def test_nothing_is_changed(good: bool) -> None:
    q = Normed()
    q.head.weight.grad = torch.ones(3, 3)
    before = {n: t.clone() for n, t in q.state_dict().items()}
    pyro.param("mine", torch.tensor(2.0))
    generators = [torch.get_rng_state().clone(), random.getstate(), np.random.get_state()[1].copy()]  # type: ignore[index]

    def draws(x: Tensor) -> None:
        np.random.normal()
        random.random()
        pyro.param("fresh", torch.tensor(0.0))
        if not good:
            raise ValueError("bad")
        model(x)

    check(draws, q, X)
    assert q.training
    assert q.dropout.training
    for name, tensor in q.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert torch.equal(q.head.weight.grad, torch.ones(3, 3))
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert random.getstate() == generators[1]
    assert np.array_equal(np.random.get_state()[1], generators[2])  # type: ignore[index]
    assert set(pyro.get_param_store().keys()) == {"mine"}
    assert not Pair.of(draws, q).store["params"]
    pyro.clear_param_store()


@pytest.mark.parametrize("kind", [AutoNormal, AutoDelta])
def test_an_autoguide_is_not_initialized(kind: Any) -> None:
    q = kind(model)
    assert check(model, q, X[:5]).ok
    assert q.prototype_trace is None
    assert not q.state_dict()
    with pyro.get_param_store().scope():
        q(X)  # for other rows
    assert check(model, q, X).ok
    assert q.prototype_trace is not None


def test_iterables_and_tuples() -> None:
    assert check(model, guide, [X[:6], X[6:]]).ok
    assert check(model, guide, (X, torch.arange(12))).ok


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        (objectives.TraceELBO(), "TraceELBO does not enumerate"),
        (objectives.MeanFieldELBO(), "MeanFieldELBO does not enumerate"),
        (objectives.ELBO(beta=2.0), "no KL that beta = 2.0"),
        (objectives.ELBO(beta=objectives.LinearWarmup(5)), "no KL that beta"),
        (objectives.ELBO(free_bits=0.1), "no free bits"),
    ],
    ids=str,
)
def test_a_latent_that_the_model_sums_out_suits_one_objective(
    objective: objectives.Objective, words: str
) -> None:
    torch.manual_seed(0)
    model, x = MixtureOfPCA((3,), latent_dim=1, components=2), torch.randn(5, 3)
    guide = MeanField((3,), 1, MLP(hidden=(4,)))
    assert check(model, guide, x).ok
    report = check(model, guide, x, objective=objective)
    assert words in str(report)
    assert [p.severity for p in report.problems] == ["error"]


@pytest.mark.parametrize("made", [nn.LazyLinear, nn.LazyBatchNorm1d])
def test_a_lazy_layer_stays_lazy(made: Any) -> None:
    """After `check` it learns its shape from the first batch that it is given, of whatever width."""

    class Lazy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.LazyLinear(4) if made is nn.LazyLinear else nn.LazyBatchNorm1d()
            self.up = nn.Sequential(layer, nn.LazyLinear(2))

        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample(
                    "x", dist.Normal(z.unsqueeze(1), 1.0).expand(x.shape).to_event(1), obs=x
                )

        def guide(self, x: Tensor) -> None:
            loc, scale = self.up(x).unbind(-1)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(loc, scale.exp()))

    vae = Lazy()
    assert check(vae.model, vae.guide, torch.randn(20, 3))
    assert type(vae.up[0]) is made
    assert check(vae.model, vae.guide, torch.randn(20, 5))
    fitted = fit(vae.model, vae.guide, torch.randn(20, 6), max_epochs=2, seed=0)
    assert math.isfinite(fitted.history[-1]["elbo"])
    assert vae.up(torch.zeros(2, 6)).shape == (2, 2)


def test_tensors_on_another_device_are_told_with_the_remedy() -> None:
    """The error is torch's, as it is raised on a GPU for `torch.zeros(2)`."""

    def guide(x: Tensor) -> None:
        raise RuntimeError("Expected all tensors to be on the same device, but found two")

    (problem,) = check(lambda x: None, guide, torch.zeros(4)).problems
    assert (
        "torch.zeros(2, device=x.device), or compute on the CPU (device='cpu' in fit"
        in problem.message
    )


def test_auto_is_the_cpu_for_a_pair_that_mixes_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU is played by the CPU, and a program that raises what it would raise there."""
    monkeypatch.setattr(devices, "resolve_device", lambda name: SimpleNamespace(type="cuda"))
    monkeypatch.setattr(devices, "move", lambda batch, device: batch)
    monkeypatch.setattr(Pair, "to", lambda pair, device: None)
    error: RuntimeError | None = RuntimeError("Expected all tensors to be on the same device, but")

    def guide(x: Tensor) -> None:
        if error is not None:
            raise error

    pair = Pair(lambda x: None, guide)
    rows = Batches(torch.zeros(4), pair)
    with pytest.warns(
        PairWarning, match="computes on the CPU.*torch.zeros\\(2, device=x.device\\)"
    ):
        assert devices.device_for(pair, rows, "auto") == "cpu"
    assert devices.device_for(pair, rows, "cuda") == "cuda"
    error = RuntimeError("anything else, which check will tell")
    assert devices.device_for(pair, rows, "auto") == "auto"
    error = None
    assert devices.device_for(pair, rows, "auto") == "auto"


def test_a_plate_that_is_told_the_number_of_all_rows_is_no_alarm() -> None:
    """Fewer rows than `check` looks at: it looks at a part of them where a training would."""

    def model(x: Tensor) -> None:
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 30, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(m, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("m", dist.Normal(pyro.param("a", torch.tensor(0.0)), 0.2))
        with pyro.plate("data", 30, subsample_size=len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.7))

    assert check(model, guide, torch.randn(30), batch_size=10).ok
