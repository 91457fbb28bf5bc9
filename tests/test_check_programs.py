"""What check() finds in the programs, by the site's name and in plain words; nothing is changed."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoNormal
from pyro.nn import PyroModule, PyroParam
from reports import X, error, guide, model, only, warning
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_vae import check, fit, objectives
from ppl_vae.checks import PairWarning, devices
from ppl_vae.guides import MeanField
from ppl_vae.models import MixtureOfPCA
from ppl_vae.networks import MLP
from ppl_vae.pairs import Batches, Pair


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


@pytest.mark.parametrize(
    ("start", "constraint", "words"),
    [
        (
            torch.tensor(5.0),
            constraints.unit_interval,
            ["numbers from 0 to 1", "begins at 5", "to 1,"],
        ),
        (
            torch.tensor([0.5, 7.0]),
            constraints.interval(0.0, 2.0),
            ["from 0 to 2", "at 7", "to 2,"],
        ),
        (
            torch.tensor(0.0),
            constraints.positive,
            ["numbers above 0", "begins at 0, where it may hardly learn"],
        ),
        (torch.ones(3), constraints.simplex, ["vectors of the simplex, but it begins elsewhere"]),
    ],
)
def test_a_start_that_torch_moves(start: Tensor, constraint: Any, words: list[str]) -> None:
    def with_start(x: Tensor) -> None:
        s = pyro.param("s", start, constraint=constraint).sum()
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2 + s, 0.7).to_event(1))

    warning(check(model, with_start, X), "s", "the parameter 's' allows", *words)


def test_a_start_inside_or_no_longer_there() -> None:
    starts = [torch.tensor(0.3)]

    def with_start(x: Tensor) -> None:
        s = pyro.param("s", starts[0], constraint=constraints.unit_interval)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2 + s, 0.7).to_event(1))

    assert check(model, with_start, X).ok
    fit(model, with_start, X, max_epochs=1, seed=0)
    starts[0] = torch.tensor(5.0)  # the learned value is what counts
    assert check(model, with_start, X).ok
