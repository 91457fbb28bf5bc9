"""Pairs that were written for plain Pyro, by people who never heard of us, through everything we do."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import programs
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import POINTS, Factor, Hierarchical, log_evidence
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuide,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

from ppl_vae import check, diagnose, evaluate, fit
from ppl_vae.objectives import ImportanceWeightedELBO, TraceELBO
from ppl_vae.pairs import Pair, PairError

DIGITS = programs.digits()
PYRO_STORE = pyro.get_param_store()


def through_everything(model: Any, guide: Any, x: Tensor, **options: Any) -> Any:
    """fit, evaluate and diagnose; what is true of any pair."""
    report = check(model, guide, x)
    assert report.ok, str(report)
    fitted = fit(model, guide, x, **({"max_epochs": 2, "batch_size": 20, "seed": 1} | options))
    assert math.isfinite(fitted.history[-1]["elbo"])
    first = evaluate(model, guide, x, num_samples=12, seed=2)
    again = evaluate(fitted.model, fitted.guide, x, num_samples=12, seed=2)
    assert torch.equal(first.log_likelihood.values, again.log_likelihood.values)
    assert first.log_likelihood.values.shape == (len(x),)
    assert torch.isfinite(first.log_likelihood.values).all()
    # the mean of log w is at most the log of the mean of w
    assert (first.elbo.values <= first.log_likelihood.values + 1e-4).all()
    diagnosis = diagnose(model, guide, x, seed=3)
    assert torch.isfinite(diagnosis.kl).all()
    assert diagnosis.summary()
    assert not list(PYRO_STORE.keys())
    return fitted


# -- as Pyro's tutorial on variational autoencoders writes it --------------------------------------------


class Decoder(nn.Module):
    def __init__(self, z_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(z_dim, hidden_dim)
        self.fc21 = nn.Linear(hidden_dim, 64)
        self.softplus = nn.Softplus()
        self.sigmoid = nn.Sigmoid()

    def forward(self, z: Tensor) -> Tensor:
        hidden = self.softplus(self.fc1(z))
        loc_img: Tensor = self.sigmoid(self.fc21(hidden))
        return loc_img


class Encoder(nn.Module):
    def __init__(self, z_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(64, hidden_dim)
        self.fc21 = nn.Linear(hidden_dim, z_dim)
        self.fc22 = nn.Linear(hidden_dim, z_dim)
        self.softplus = nn.Softplus()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.reshape(-1, 64)
        hidden = self.softplus(self.fc1(x))
        z_loc = self.fc21(hidden)
        z_scale = torch.exp(self.fc22(hidden))
        return z_loc, z_scale


class TutorialVAE(nn.Module):
    def __init__(self, z_dim: int = 5, hidden_dim: int = 16) -> None:
        super().__init__()
        self.encoder = Encoder(z_dim, hidden_dim)
        self.decoder = Decoder(z_dim, hidden_dim)
        self.z_dim = z_dim

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z_loc = x.new_zeros(torch.Size((x.shape[0], self.z_dim)))
            z_scale = x.new_ones(torch.Size((x.shape[0], self.z_dim)))
            z = pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))
            loc_img = self.decoder(z)
            pyro.sample("obs", dist.Bernoulli(loc_img).to_event(1), obs=x.reshape(-1, 64))

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            z_loc, z_scale = self.encoder.forward(x)
            pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))


def test_the_tutorials_vae_untouched() -> None:
    vae = TutorialVAE()
    before = {n: p.detach().clone() for n, p in vae.named_parameters()}
    fitted = through_everything(vae.model, vae.guide, DIGITS)
    assert all(not torch.equal(before[n], p) for n, p in vae.named_parameters())
    assert fitted.model == vae.model  # nothing to carry: the modules hold everything
    assert diagnose(vae.model, vae.guide, DIGITS, seed=0).names[0] == "latent[0]"


def test_the_tutorials_vae_has_the_tutorials_loss() -> None:
    """The same rows, the same seed, the same optimizer: the ELBO of Pyro's own SVI."""
    ours, theirs = TutorialVAE(), TutorialVAE()
    theirs.load_state_dict(ours.state_dict())
    fitted = fit(
        ours.model,
        ours.guide,
        DIGITS,
        objective=pyro.infer.Trace_ELBO(),
        max_epochs=1,
        batch_size=48,
        seed=1,
    )
    with PYRO_STORE.scope():
        losses = []
        for seed in range(300):
            torch.manual_seed(seed)
            loss = pyro.infer.Trace_ELBO().loss(theirs.model, theirs.guide, DIGITS)
            losses.append(loss / len(DIGITS))
    losses_ = torch.tensor(losses)
    assert abs(-fitted.history[0]["elbo"] - losses_.mean()) < 5 * losses_.std()


class PlainVAE:
    """Not a module at all; the networks are in a list."""

    def __init__(self) -> None:
        self.networks = [Encoder(3, 8), Decoder(3, 8)]

    def model(self, x: Tensor) -> None:
        decoder = pyro.module("decoder", self.networks[1])
        with pyro.plate("pictures", len(x)):
            z = pyro.sample("code", dist.Normal(x.new_zeros(len(x), 3), 1.0).to_event(1))
            pyro.sample("pixels", dist.Bernoulli(decoder(z)).to_event(1), obs=x.reshape(-1, 64))

    def guide(self, x: Tensor) -> None:
        encoder = pyro.module("encoder", self.networks[0])
        with pyro.plate("pictures", len(x)):
            pyro.sample("code", dist.Normal(*encoder(x)).to_event(1))


def test_a_class_that_is_no_module() -> None:
    vae = PlainVAE()
    before = [p.detach().clone() for net in vae.networks for p in net.parameters()]
    through_everything(vae.model, vae.guide, DIGITS)
    after = [p for net in vae.networks for p in net.parameters()]
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert len(Pair(vae.model, vae.guide).state()) == len(before)


# -- functions -------------------------------------------------------------------------------------------

global_encoder, global_decoder = Encoder(2, 8), Decoder(2, 8)


def global_model(x: Tensor) -> None:
    pyro.module("decoder", global_decoder)
    with pyro.plate("rows", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Bernoulli(global_decoder(z)).to_event(1), obs=x.flatten(1))


def global_guide(x: Tensor) -> None:
    pyro.module("encoder", global_encoder)
    with pyro.plate("rows", len(x), dim=-1):
        pyro.sample("z", dist.Normal(*global_encoder(x)).to_event(1))


def test_functions_over_global_modules() -> None:
    through_everything(global_model, global_guide, DIGITS)
    names = set(Pair(global_model, global_guide).state())
    assert "model.global_decoder.fc1.weight" in names
    assert "guide.global_encoder.fc22.bias" in names
    assert len(names) == 10


def closures() -> tuple[Callable[[Tensor], None], Callable[[Tensor], None], list[nn.Module]]:
    encoder, decoder = Encoder(2, 8), Decoder(2, 8)

    def model(x: Tensor) -> None:
        def decode(z: Tensor) -> Tensor:
            picture: Tensor = decoder(z)
            return picture

        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(decode(z)).to_event(1), obs=x.flatten(1))

    def guide(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(*encoder(x)).to_event(1))

    return model, guide, [encoder, decoder]


def test_closures_without_pyro_module() -> None:
    model, guide, networks = closures()
    before = [p.detach().clone() for net in networks for p in net.parameters()]
    through_everything(model, guide, DIGITS)
    after = [p for net in networks for p in net.parameters()]
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def partial_model(x: Tensor, networks: dict[str, nn.Module], size: int) -> None:
    pyro.module("dec", networks["decoder"])
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(size), 1.0).to_event(1))
        pyro.sample("x", dist.Bernoulli(networks["decoder"](z)).to_event(1), obs=x.flatten(1))


def partial_guide(network: nn.Module, x: Tensor) -> None:
    pyro.module("enc", network)
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(*network(x)).to_event(1))


def test_partials() -> None:
    decoder = Decoder(4, 8)
    model = functools.partial(partial_model, networks={"decoder": decoder}, size=4)
    guide = functools.partial(partial_guide, Encoder(4, 8))
    through_everything(model, guide, DIGITS)
    assert len(Pair(model, guide).state()) == 10
    labels = torch.arange(len(DIGITS))
    fit(model, guide, (DIGITS, labels), max_epochs=1, seed=0)  # cut to the model's one argument


def test_wrapped_by_handlers() -> None:
    model, guide, _ = closures()
    through_everything(poutine.scale(model, scale=0.5), poutine.scale(guide, scale=0.5), DIGITS)


# -- modules with parameters of Pyro's -------------------------------------------------------------------


class ScaledModel(PyroModule):
    sigma: Any

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Linear(2, 64)
        self.sigma = PyroParam(torch.tensor(0.7), constraints.positive)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), self.sigma).to_event(1), obs=x.flatten(1))


class ScaledGuide(PyroModule):
    tau: Any

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(64, 2)
        self.tau = PyroParam(torch.tensor(0.5), constraints.interval(0.01, 2.0))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x.flatten(1)), self.tau).to_event(1))


def test_pyro_modules_with_pyro_params() -> None:
    model, guide = ScaledModel(), ScaledGuide()
    through_everything(model, guide, DIGITS)
    assert float(model.sigma.detach()) != pytest.approx(0.7)
    assert float(guide.tau.detach()) != pytest.approx(0.5)
    fitted = fit(model, guide, DIGITS, max_epochs=1, seed=0)
    assert fitted.model is model  # the module itself carries them


# -- several latents -------------------------------------------------------------------------------------


def test_hierarchical_latents() -> None:
    vae = Hierarchical()
    through_everything(vae.model, vae.guide, DIGITS)
    names = diagnose(vae.model, vae.guide, DIGITS, seed=0).names
    assert set(names) == {"z2[0]", "z2[1]", "z1[0]", "z1[1]", "z1[2]"}


class Mixture(nn.Module):
    """A discrete latent that the model enumerates, beside a continuous one."""

    def __init__(self) -> None:
        super().__init__()
        self.centers = nn.Parameter(torch.randn(3, 2))
        self.out = nn.Linear(2, 64)
        self.up = nn.Linear(64, 2)

    @staticmethod
    def prior() -> Any:
        return dist.Categorical(torch.ones(3) / 3)

    def model(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            k = pyro.sample("k", self.prior(), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(self.centers[k], 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.out(z)).to_event(1), obs=x.flatten(1))

    def guide(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(self.up(x.flatten(1)), 0.5).to_event(1))


def test_an_enumerated_latent() -> None:
    vae = Mixture()
    through_everything(vae.model, vae.guide, DIGITS)


# -- autoguides ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [AutoNormal, AutoDelta, AutoLaplaceApproximation])
def test_autoguides_of_rows(kind: type[AutoGuide]) -> None:
    model = Factor()
    guide = kind(model)
    options: dict[str, Any] = {"batch_size": len(DIGITS), "learning_rate": 0.05}
    if kind is AutoNormal:
        fitted = through_everything(model, guide, DIGITS, **options)
        assert fitted.guide is guide
    else:
        fit(model, guide, DIGITS, max_epochs=2, seed=0, **options)
    with PYRO_STORE.scope():
        value = guide(DIGITS)["z"]
    assert value.shape == (48, 2)
    assert float(value.detach().std()) > 0


@pytest.mark.parametrize("kind", [AutoNormal, AutoDelta])
def test_autoguides_want_all_rows(kind: type[AutoGuide]) -> None:
    model = Factor()
    with pytest.raises(PairError, match=r"batch_size = the number of rows"):
        fit(model, kind(model), DIGITS, batch_size=20, max_epochs=1)
    with pytest.raises(PairError, match=r"batch_size = the number of rows"):
        fit(model, kind(model), [DIGITS[:20], DIGITS[20:]], max_epochs=1)


@pytest.mark.parametrize(
    "kind",
    [
        AutoDiagonalNormal,
        AutoMultivariateNormal,
        AutoLowRankMultivariateNormal,
    ],
)
def test_autoguides_that_tie_rows_are_refused(kind: type[AutoGuide]) -> None:
    model = Factor()
    with pytest.raises(PairError, match=r"jointly at site '_\w+_latent'.*AutoNormal"):
        fit(model, kind(model), DIGITS, batch_size=len(DIGITS), max_epochs=1)


def test_check_does_not_initialize_an_autoguide() -> None:
    model = Factor()
    guide = AutoNormal(model)
    assert check(model, guide, DIGITS[:10]).ok
    assert not list(guide.named_parameters())
    fit(model, guide, DIGITS, batch_size=len(DIGITS), max_epochs=1, seed=0)
    with PYRO_STORE.scope():
        assert guide(DIGITS)["z"].shape == (48, 2)


# -- what does not vectorize, and plates -----------------------------------------------------------------


class ConvolutionalVAE(nn.Module):
    """Its networks take exactly one batch dimension, as torch's convolutions do."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(
            nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)
        )
        self.expand = nn.Linear(2, 64)
        self.decode = nn.Sequential(nn.ConvTranspose2d(4, 1, 2, 2), nn.BatchNorm2d(1))

    def model(self, x: Tensor) -> None:
        with pyro.plate("rows", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(x.shape[0], 2), 1.0).to_event(1))
            logits = self.decode(self.expand(z).reshape(x.shape[0], 4, 4, 4))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(3), obs=x[:, None])

    def guide(self, x: Tensor) -> None:
        with pyro.plate("rows", x.shape[0]):
            loc, log_scale = self.encode(x[:, None]).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def test_convolutions_that_do_not_vectorize() -> None:
    vae = ConvolutionalVAE()
    through_everything(vae.model, vae.guide, DIGITS)

    fit(
        vae.model,
        vae.guide,
        DIGITS,
        objective=ImportanceWeightedELBO(num_particles=3),
        max_epochs=1,
    )


def test_a_plate_that_stands_for_more_rows() -> None:
    """plate(size=1000, subsample=x): the loss is still that of a row, and the evaluation knows no scale."""

    def weigh(size: int | None) -> tuple[Any, Any]:
        def plate(x: Tensor) -> Any:
            return pyro.plate("data", size, subsample=x) if size else pyro.plate("data", len(x))

        def model(x: Tensor) -> None:
            loc = pyro.param("loc", torch.tensor(0.0))
            with plate(x):
                pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(loc, 1.0)), 1.0), obs=x)

        def guide(x: Tensor) -> None:
            with plate(x):
                pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

        return model, guide

    for pair in (weigh(1000), weigh(None)):
        objective = TraceELBO()
        fitted = fit(*pair, POINTS, objective=objective, max_epochs=3, seed=0, learning_rate=1e-9)
        evaluation = evaluate(*pair, POINTS, num_samples=3, seed=0)
        assert torch.allclose(
            evaluation.log_likelihood.values, log_evidence(POINTS, 0.0), atol=1e-4
        )
        elbo = float(log_evidence(POINTS, 0.0).mean())
        assert fitted.history[-1]["elbo"] == pytest.approx(elbo, abs=1e-4)
        assert fitted.history[-1]["loss"] == pytest.approx(-elbo, abs=1e-4)


def test_a_plate_that_draws_its_own_rows() -> None:
    """It takes all the rows that it is given: fit and evaluate choose them."""

    def pair(part: int | None) -> tuple[Any, Any]:
        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x), subsample_size=part) as rows:
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                logits = torch.cat([z] * 32, -1)
                pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x.flatten(1)[rows])

        def guide(x: Tensor) -> None:
            loc = pyro.param("loc", torch.zeros(2))
            with pyro.plate("data", len(x), subsample_size=part):
                pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

        return model, guide

    drawing, plain = (
        fit(*pair(part), DIGITS, max_epochs=2, seed=0, batch_size=20).history for part in (10, None)
    )
    assert [epoch["loss"] for epoch in drawing] == [epoch["loss"] for epoch in plain]


def test_parameters_for_each_row_by_hand() -> None:
    """A guide that is not amortized, and is no AutoGuide."""

    def guide(x: Tensor) -> None:
        loc = pyro.param("locs", lambda: torch.zeros(48, 2))
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(loc, 0.5).to_event(1))

    model = Factor()
    with pytest.raises(PairError, match=r"shape \(20, 8, 8\).*20 vs 48"):
        fit(model, guide, DIGITS, batch_size=20, max_epochs=1)
    fit(model, guide, DIGITS, batch_size=48, max_epochs=2, seed=0)
    guide.keeps_rows = True  # type: ignore[attr-defined]
    assert evaluate(model, guide, DIGITS, num_samples=5, seed=0).num_rows == 48


class _UsesANet(torch.nn.Module):
    """A guide whose `forward` uses a net that is not registered in it."""

    def forward(self, x: Tensor) -> None:
        loc = _unregistered(x.unsqueeze(-1)).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 0.5**0.5))


_unregistered = torch.nn.Linear(1, 1)


def test_a_net_that_forward_uses_is_trained() -> None:
    """z ~ N(0, 1), x ~ N(z, 1): the best guide has the mean x / 2."""

    model = programs.normal

    x = 3 * torch.randn(100)
    fit(model, _UsesANet(), x, max_epochs=300, batch_size=100, learning_rate=0.02, seed=0)
    assert abs(float(_unregistered.weight.detach()) - 0.5) < 0.05
    assert abs(float(_unregistered.bias.detach())) < 0.1
