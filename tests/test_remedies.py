"""What a diagnosis says to type: lines that run as they are, and keep what the pair was trained with."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import ppl_vae
from ppl_vae import diagnose
from ppl_vae.checks import opened
from ppl_vae.diagnosis import Diagnosis
from ppl_vae.diagnosis.causes import CAUSES
from ppl_vae.diagnosis.decoder import models_dependencies
from ppl_vae.diagnosis.new_weights import with_new_weights
from ppl_vae.diagnosis.remedies import (
    BATCH_SIZE,
    LEARNING_RATE,
    Facts,
    what_to_type,
    words_beside,
)
from ppl_vae.guides import BottomUp, Exact, MeanField
from ppl_vae.likelihoods import DiscretizedLogistic, Gaussian, LearnedGaussian
from ppl_vae.models import VAE, AutoregressivePrior, HierarchicalVAE, ProbabilisticPCA
from ppl_vae.networks import MLP
from ppl_vae.objectives import (
    ELBO,
    ImportanceWeightedELBO,
    LinearWarmup,
    Objective,
    SemiSupervisedELBO,
    TargetRate,
)
from ppl_vae.reporting.remedy import may_be_run, may_be_typed

FACTS = Facts(None, None, 1.0, 30, 2.0, 3)  # type: ignore[arg-type]
RUN = "ppl_vae.fit(model, guide, x, {}max_epochs=200)"


def typed(cause: str, **facts: Any) -> str:
    return what_to_type(cause, replace(FACTS, **facts))[0]


def options(cause: str, **facts: Any) -> str:
    return " ".join(what_to_type(cause, replace(FACTS, **facts))[1])


def test_the_objective_is_kept() -> None:
    """With another beta, where that is the remedy."""
    objective: Objective = SemiSupervisedELBO(classification=5.0)
    named = "objective=ppl_vae.objectives.SemiSupervisedELBO(classification=5.0), "
    assert typed("constant posterior", objective=objective) == RUN.format(named)
    objective = ImportanceWeightedELBO(num_particles=7, beta=4.0)
    warm = "ppl_vae.objectives.LinearWarmup(epochs=100)"
    named = f"objective=ppl_vae.objectives.ImportanceWeightedELBO(beta={warm}, num_particles=7), "
    assert typed("large beta", objective=objective, beta=4.0) == RUN.format(named)
    objective = ELBO(free_bits=0.5)
    named = f"objective=ppl_vae.objectives.ELBO(beta={warm}, free_bits=0.5), "
    assert typed("local optimum", objective=objective) == RUN.format(named)
    assert typed("constant posterior") == RUN.format("")

    class Own(Objective):
        def __call__(self, *given: Any) -> Any: ...

    named = "objective=ppl_vae.objectives.ELBO(beta=2.0), "
    assert typed("constant posterior", objective=Own(beta=2.0), beta=2.0) == RUN.format(named)


def test_a_training_goes_on_to_the_end_of_its_schedule() -> None:
    warming = ELBO(beta=LinearWarmup(epochs=300))
    line = typed("still training", objective=warming, epochs=3, beta=0.01)
    beta = "ppl_vae.objectives.LinearWarmup(epochs=300)"
    named = f"objective=ppl_vae.objectives.ELBO(beta={beta})"
    assert line == f"ppl_vae.fit(model, guide, x, {named}, max_epochs=600)"
    assert options("still training", objective=warming, epochs=3) == "resume --max_epochs 600"


def test_a_small_beta_is_not_raised() -> None:
    assert "LinearWarmup(epochs=100, end=0.25)" in typed("local optimum", beta=0.25)
    assert "--objective.beta.end 0.25 " in options("local optimum", beta=0.25)


@pytest.mark.parametrize(
    "objective", [ELBO(beta=30.0), ELBO(beta=LinearWarmup(epochs=9, end=30.0))]
)
def test_a_large_beta_is_replaced_by_one_that_warms_up_to_1(objective: Objective) -> None:
    warm = "ppl_vae.objectives.LinearWarmup(epochs=100)"
    assert f"ELBO(beta={warm}), max" in typed("large beta", objective=objective, beta=30.0)
    expected = (
        "train --objective.beta LinearWarmup --objective.beta.epochs 100 --objective.beta.start 0"
    )
    expected += " --objective.beta.end 1 --max_epochs 200"
    assert options("large beta", objective=objective, beta=30.0) == expected


def test_a_remedy_has_enough_steps() -> None:
    """Epochs of one batch are many where a run had few of them, and a run is as long as the line of Python."""
    few: dict[str, Any] = {"epochs": 300, "steps": 300, "learning_rate": 1e-5}
    assert "LinearWarmup(epochs=500)), max_epochs=1000)" in typed("local optimum", **few)
    warm = "--objective.beta.end 1 --learning_rate 0.001 --max_epochs 1000"
    assert options("local optimum", **few).endswith(warm)
    assert options("lagging guide", **few) == "refit --learning_rate 0.001 --max_epochs 1000"
    assert options("lagging guide", epochs=300, steps=3000) == "refit"
    assert options("lagging guide", epochs=None) == "refit"
    assert options("strong decoder").endswith("--objective.beta.start 1 --max_epochs 200")


def test_options_of_another_class_are_replaced() -> None:
    """config.yaml may hold the start of a controller, or of a schedule."""
    assert "--objective.beta.start 0 --objective.beta.end 1" in options("local optimum")
    assert "--objective.beta.nats 3.5 --objective.beta.start 1" in options("strong decoder")


def test_under_a_controller_another_target_is_given() -> None:
    controlled = ELBO(beta=TargetRate(nats=2.0))
    assert "TargetRate(nats=3.5)" in typed("large beta", objective=controlled, beta=16.35)
    refit = typed("lagging guide", objective=controlled, beta=16.35)
    assert "objective=ppl_vae.objectives.ELBO(beta=16.35)" in refit


def test_nothing_is_typed_where_nothing_would_run() -> None:
    assert what_to_type("local optimum", replace(FACTS, summed=True)) == ("", ())
    assert what_to_type("lagging guide", replace(FACTS, guide_learns=False)) == ("", ())
    assert what_to_type("surplus dimensions", FACTS) == ("", ())


def test_batches_and_steps_are_those_of_the_fit() -> None:
    """Where they are not the default ones, as `fit` has them."""
    defaults = inspect.signature(ppl_vae.fit).parameters
    assert defaults["batch_size"].default == BATCH_SIZE
    kept = {"batch_size": 50, "learning_rate": 0.01}
    for cause in (
        "still training",
        "lagging guide",
        "strong decoder",
        "large beta",
        "local optimum",
    ):
        assert "batch_size=50, learning_rate=0.01, max_epochs=" in typed(cause, **kept)
        plain = typed(cause, batch_size=BATCH_SIZE, learning_rate=LEARNING_RATE)
        assert plain == typed(cause)
    assert "learning_rate" not in typed("local optimum", learning_rate=1e-6)
    assert "learning_rate=1e-06" in typed("still training", learning_rate=1e-6)


@pytest.mark.parametrize(
    ("given", "known"),
    [
        ({}, (128, 1e-3)),
        ({"batch_size": 30, "learning_rate": 0.02}, (30, 0.02)),
        ({"optimizer": torch.optim.SGD, "learning_rate": 0.1}, (128, None)),
    ],
)
def test_a_fit_knows_its_batches_and_steps(given: Any, known: Any) -> None:
    model, guide, x = VAE((6,), 1, MLP((8,))), MeanField((6,), 1, MLP((8,))), torch.ones(60, 6)
    fitted = ppl_vae.fit(model, guide, x, max_epochs=1, seed=0, **given)
    assert (fitted.batch_size, fitted.learning_rate) == known


class Bare(nn.Module):
    """An encoder of tensors, without parts that draw their weights anew, whose units are all off."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.off = (
            nn.Parameter(torch.randn(6, 16)),
            nn.Parameter(torch.full((16,), -1e3)),
        )
        self.outer, self.shift = nn.Parameter(torch.randn(16, 2)), nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc = (x @ self.inner + self.off).relu() @ self.outer + self.shift
            pyro.sample("z", dist.Normal(loc, 0.5).to_event(1))


class Half(Bare):
    """One whose units are a layer, and whose shift is a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 16)
        del self.inner

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc = (self.layer(x) + self.off).relu() @ self.outer + self.shift
            pyro.sample("z", dist.Normal(loc, 0.5).to_event(1))


@pytest.mark.parametrize("kind", [Bare, pytest.param(Half, marks=pytest.mark.slow)])
def test_a_dead_encoder_of_tensors_is_mended_by_what_is_typed(kind: Any) -> None:
    torch.manual_seed(0)
    x = generated("normal") + 0.1 * torch.randn(200, 6)
    model, guide = VAE((6,), 2, MLP(()), Gaussian(1.0)), kind()
    fitted = ppl_vae.fit(model, guide, x, max_epochs=3, batch_size=50, learning_rate=0.03, seed=0)
    found = diagnose(model, guide, x, fit=replace(fitted, history=[]), seed=0)
    assert found.cause == "dead encoder"
    (code,) = {each.code for each in found.causes.values()}
    assert "batch_size=50, learning_rate=0.009, max_epochs=250" in code
    exec(code, {"ppl_vae": ppl_vae, "torch": torch, "model": model, "guide": guide, "x": x})
    assert diagnose(model, guide, x, seed=0).active_units > 0


def collapsed(p: Any) -> tuple[Any, Any]:
    """A pair whose decoder ignores z, with this distribution of the data, and with the prior as its guide."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(0.0))

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", p(0 * self.weight * z[..., :1], x).to_event(1), obs=x)

    class Guide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope = nn.Parameter(torch.tensor(0.0))

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                loc = 1e-4 * x.reshape(len(x), -1)[:, :2].clamp(-1, 1) + self.slope
                pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    return Model(), Guide()


def generated(kind: str) -> Tensor:
    """Data of this kind with a strong factor."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(200, 1, generator=generator) * torch.ones(6)
    logits = logits + torch.randn(200, 6, generator=generator)
    if kind in ("one-hot", "dirichlet", "multinomial"):
        logits = logits.reshape(200, 2, 3) * torch.tensor([1.0, 0.0, -1.0])
        if kind == "one-hot":
            return nn.functional.one_hot(logits.argmax(-1), 3).float()
        return logits.softmax(-1) if kind == "dirichlet" else (4 * logits.softmax(-1)).round()
    return logits.exp() if kind == "positive" else logits


def of_six(z: Tensor) -> Tensor:
    return z.expand(*z.shape[:-1], 6)


def of_categories(z: Tensor) -> Tensor:
    return z.unsqueeze(-1).expand(*z.shape[:-1], 2, 3)


KINDS: dict[str, tuple[Any, str]] = {
    "one-hot": (lambda z, x: dist.OneHotCategorical(logits=of_categories(z)), "local optimum"),
    "dirichlet": (lambda z, x: dist.Dirichlet(of_categories(z) + 1), "ignored latent"),
    "student": (lambda z, x: dist.StudentT(3.0, of_six(z), 1.0), "local optimum"),
    "positive": (lambda z, x: dist.LogNormal(of_six(z), 1.0), "local optimum"),
    "normal": (lambda z, x: dist.Normal(of_six(z), 1.0), "local optimum"),
}


@pytest.mark.slow(but=("one-hot", "student"))
@pytest.mark.filterwarnings("ignore:beta warms up for")
@pytest.mark.parametrize("kind", KINDS)
def test_a_collapsed_pair_of_any_likelihood_gets_a_cause(kind: str) -> None:
    p, cause = KINDS[kind]
    x = generated(kind)
    model, guide = collapsed(p)
    found = diagnose(model, guide, x, seed=0)
    assert found.cause == cause
    with opened(model, guide, x, seed=0, progress=False) as session:
        assert models_dependencies(session).found is False
    runs(found, model, guide, x)


def runs(found: Diagnosis, model: Any, guide: Any, x: Any) -> None:
    """Types each line, with few epochs."""
    for cause in found.causes.values():
        code = cause.code.replace(f"max_epochs={FACTS.length}", "max_epochs=1")
        exec(code, {"ppl_vae": ppl_vae, "torch": torch, "model": model, "guide": guide, "x": x})


def test_what_a_strong_decoder_shall_not_see_is_named_for_pixels_and_words() -> None:
    assert "pixel_dropout, which hides pixels, or words" in CAUSES["strong decoder"].remedy


def test_a_beta_of_zero() -> None:
    model, guide = collapsed(KINDS["normal"][0])
    found = diagnose(model, guide, generated("normal"), beta=0.0, seed=0)
    assert found.cause == "local optimum"


def test_a_decoder_that_reads_x_beside_labels() -> None:
    """The data come second; what is called first is no data, whatever the density makes of it."""

    def guide(c: Tensor, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0 * x[:, :2], 1.0).to_event(1))

    def model(c: Tensor, x: Tensor, reads: bool = False) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            before = torch.cat([0 * x[:, :1], x[:, :-1]], 1) if reads else 0 * x
            mean = before + (c[:, :1] * c[:, 1:]).sin() + 0 * z[..., :1]
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    c, x = torch.randn(50, 2), generated("normal")[:50]
    for reads in (False, True):
        with opened(lambda c, x, r=reads: model(c, x, r), guide, (c, x), seed=0) as session:
            assert models_dependencies(session).found is reads


def test_pixels_in_a_plate_are_judged() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            with pyro.plate("pixels", 6, dim=-1):
                pyro.sample("x", dist.Normal(0 * z[..., 0], 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(0 * x[:, :1].unsqueeze(-1), 1.0).to_event(1))

    found = diagnose(model, guide, generated("normal"), seed=0)
    assert found.cause == "local optimum"
    assert not any("not known" in note for note in found.notes)


def test_an_unfinished_training_is_told_although_all_dimensions_are_used() -> None:
    torch.manual_seed(0)
    model, guide = VAE((6,), 1, MLP((8,))), MeanField((6,), 1, MLP((8,)))
    x = (generated("normal") > 0).float()
    fitted = ppl_vae.fit(model, guide, x, max_epochs=6, batch_size=5, learning_rate=0.01, seed=0)
    found = diagnose(model, guide, x, fit=fitted, seed=0)
    assert found.active_units == 1
    assert found.faults["still training"].startswith("The training had not ended: after 6 epochs")


def test_a_posterior_that_is_the_prior_of_its_label_tells_nothing_beyond_it() -> None:
    """p(z | y) = N(5 y, 1), and the guide is that prior: z tells y, and nothing beyond."""

    def program(x: Tensor, y: Tensor, model: bool = True) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(5.0 * y, 1.0))
            if model:
                pyro.sample("x", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1), obs=x)

    x, y = torch.randn(300, 2), torch.arange(300) % 3
    found = diagnose(program, lambda x, y: program(x, y, False), (x, y), seed=0)
    low, high = found.information_bounds
    assert (low, high) == pytest.approx((0.0, 0.0), abs=1e-9)


class Tied(nn.Module):
    """A guide whose two latents share a noise of their own kind: it cannot be the prior of correlation 0.5."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> None:
        loc, scale = self.encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            q = dist.Normal(loc, nn.functional.softplus(scale) + 1e-3)
            pyro.sample("z", q.to_event(1))


class Correlated(nn.Module):
    """Normal data, and latents that are correlated under the prior."""

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.decoder, self.sigma = nn.Linear(2, 6), sigma

    def forward(self, x: Tensor) -> None:
        covariance = torch.tensor([[1.0, 0.8], [0.8, 1.0]])
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.MultivariateNormal(torch.zeros(2), covariance))
            pyro.sample("x", dist.Normal(self.decoder(z), self.sigma).to_event(1), obs=x)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("beta", "sigma", "cause"),
    [
        (300.0, 0.5, "large beta"),
        pytest.param(*(1.0, 8.0, "decoder noise"), marks=pytest.mark.slow),
    ],
)
def test_a_guide_that_cannot_be_the_prior_has_the_same_causes(
    beta: float, sigma: float, cause: str
) -> None:
    """Its collapsed posterior keeps a KL, which does not make it one that ignores x by itself."""
    torch.manual_seed(0)
    x = torch.randn(400, 2) @ torch.randn(2, 6) + 0.5 * torch.randn(400, 6)
    model, guide = Correlated(sigma), Tied()
    objective = ELBO(beta=beta)
    fitted = ppl_vae.fit(
        model, guide, x, objective=objective, max_epochs=100, learning_rate=1e-2, seed=0
    )
    found = diagnose(model, guide, x, fit=fitted, seed=0)
    assert found.active_units == 0
    assert float(found.kl.max()) > 0.01
    assert found.cause == cause
    (code,) = {each.code for each in found.causes.values()}
    exec(code, {"ppl_vae": ppl_vae, "torch": torch, "model": model, "guide": guide, "x": x})
    assert diagnose(model, guide, x, seed=0).active_units == 2


@pytest.mark.slow
def test_a_training_that_ends_off_the_prior_is_a_local_optimum() -> None:
    """Weights that a large beta has left at 0 stay there with tiny steps; the guide cannot be the prior."""
    torch.manual_seed(0)
    x = torch.randn(300, 2) @ torch.randn(2, 6) + 0.5 * torch.randn(300, 6)
    model, guide = Correlated(0.5), Tied()
    kept: dict[str, Any] = {"max_epochs": 60, "batch_size": 100, "seed": 0}
    ppl_vae.fit(model, guide, x, objective=ELBO(beta=300.0), learning_rate=1e-2, **kept)
    fitted = ppl_vae.fit(model, guide, x, learning_rate=1e-6, **kept)
    found = diagnose(model, guide, x, fit=fitted, seed=0)
    assert float(found.kl.max()) > 0.01
    assert (found.active_units, found.cause) == (0, "local optimum")
    (code,) = {each.code for each in found.causes.values()}
    exec(code, {"ppl_vae": ppl_vae, "torch": torch, "model": model, "guide": guide, "x": x})
    assert diagnose(model, guide, x, seed=0).active_units == 2


def test_a_lagging_guide_is_not_refitted_with_the_steps_that_made_it_lag() -> None:
    assert "learning_rate" not in typed("lagging guide", learning_rate=1e-6)
    assert "learning_rate=0.01" in typed("lagging guide", learning_rate=0.01)


def quantized(rows: int) -> Tensor:
    """Three factors in ten numbers of 256 levels."""
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(rows, 3, generator=generator) @ torch.randn(3, 10, generator=generator)
    x = (z + 0.5 * torch.randn(rows, 10, generator=generator)) / 10 + 0.5
    return (255 * x.clamp(0, 1)).round() / 255


@pytest.mark.slow
def test_a_decoder_that_learns_its_scale_recovers_from_a_large_beta() -> None:
    """Two hundred steps with beta = 1 from the start bring no dimension back: the scale grows instead."""
    x = quantized(200)
    torch.manual_seed(2)
    model = VAE((10,), 3, MLP((32,)), DiscretizedLogistic())
    guide = MeanField((10,), 3, MLP((32,)))
    kept: dict[str, Any] = {"batch_size": 200, "learning_rate": 0.02, "seed": 0}
    fitted = ppl_vae.fit(model, guide, x, objective=ELBO(beta=30.0), max_epochs=100, **kept)
    found = diagnose(model, guide, x, fit=fitted, seed=0)
    assert (found.cause, found.active_units) == ("large beta", 0)
    (code,) = {each.code for each in found.causes.values()}
    exec(code, {"ppl_vae": ppl_vae, "torch": torch, "model": model, "guide": guide, "x": x})
    assert diagnose(model, guide, x, seed=0).active_units == 3


class Own(nn.Module):
    """A model of the user's, with a density of its own."""

    def __init__(self, p: Any) -> None:
        super().__init__()
        self.net, self.p = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 10)), p

    def forward(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            code = pyro.sample("code", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
            pyro.sample("data", self.p(self.net(code)).to_event(1), obs=x)


class OwnGuide(nn.Module):
    """A guide for it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 6))

    def forward(self, x: Tensor) -> None:
        loc, scale = self.net(x).chunk(2, -1)
        with pyro.plate("rows", len(x)):
            q = dist.Normal(loc, nn.functional.softplus(scale) + 1e-4)
            pyro.sample("code", q.to_event(1))


DENSITIES: dict[str, tuple[Any, int]] = {
    "normal": (dist.Normal, 2),
    "absolute errors": (dist.Laplace, 1),
    "logistic": (dist.Logistic, 2),
}


@pytest.mark.slow
@pytest.mark.parametrize(  # with the others, the losses are compared below
    "kind",
    ["logistic", *(pytest.param(k, marks=pytest.mark.slow) for k in ("normal", "absolute errors"))],
)
def test_a_small_beta_does_for_a_model_of_the_users_what_a_smaller_noise_would(kind: str) -> None:
    """With a normal and a Laplace density exactly: the losses differ by a factor and a constant."""
    p, power = DENSITIES[kind]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 3, generator=generator) @ torch.randn(3, 10, generator=generator)
    x = x + 0.5 * p(0.0, 1.0).sample((500, 10))
    torch.manual_seed(0)
    guide, hidden = OwnGuide(), Own(lambda mean: p(mean, 10.0))
    ppl_vae.fit(hidden, guide, x, max_epochs=50, batch_size=100, learning_rate=0.01, seed=0)
    given: dict[str, Any] = {"batch_size": 100, "learning_rate": 0.01, "epochs": 50}
    given |= {"model": hidden, "guide": guide, "suiting_beta": 0.05**power}
    facts = replace(FACTS, **given)
    code, words = what_to_type("decoder noise", facts)
    assert words == ("train", "--objective.beta", f"{0.05**power:g}", "--max_epochs", "200")
    assert f"with beta = {0.05**power:g}, which does the same for z" in words_beside(
        "decoder noise", facts
    )
    assert may_be_typed(words)
    assert may_be_run(code)
    assert diagnose(hidden, guide, x, seed=0).active_units == 0
    exec(code, {"ppl_vae": ppl_vae, "torch": torch, "model": hidden, "guide": guide, "x": x})
    assert diagnose(hidden, guide, x, seed=0).active_units == 3


@pytest.mark.slow(only=("normal",))
@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=() if kind == "normal" else pytest.mark.slow) for kind in DENSITIES],
)
def test_what_is_printed_for_a_noise_of_the_users_brings_dimensions_back(kind: str) -> None:
    p, power = DENSITIES[kind]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 3, generator=generator) @ torch.randn(3, 10, generator=generator)
    torch.manual_seed(1)
    x = x + 0.3 * torch.randn(500, 10)
    guide, hidden = OwnGuide(), Own(lambda mean: p(mean, 10.0))
    given: dict[str, Any] = {"batch_size": 100, "learning_rate": 0.01, "seed": 0}
    fitted = ppl_vae.fit(hidden, guide, x, max_epochs=50, **given)
    found = diagnose(hidden, guide, x, fit=fitted, seed=0)
    assert (found.cause, found.active_units) == ("decoder noise", 0)
    (code,) = {each.code for each in found.causes.values()}
    shown = re.search(r"ELBO\(beta=([\d.e-]+)\)", code)
    assert shown is not None
    # Between the noise with all three dimensions and the one without any.
    assert 0.02**power < float(shown[1]) < 0.25**power
    exec(code, {"ppl_vae": ppl_vae, "torch": torch, "model": hidden, "guide": guide, "x": x})
    assert diagnose(hidden, guide, x, seed=0).active_units == 3


@pytest.mark.parametrize("kind", ["normal", "absolute errors"])
def test_that_beta_is_the_smaller_noise_exactly(kind: str) -> None:
    """The losses differ by a factor and a constant, so that Adam takes the same steps."""
    p, power = DENSITIES[kind]
    x = torch.randn(100, 10, generator=torch.Generator().manual_seed(0))
    weights = []
    for scale, beta in ((2.0, 0.25**power), (0.5, 1.0)):
        torch.manual_seed(0)
        model, guide = Own(lambda mean, s=scale: p(mean, s)), OwnGuide()
        objective = ELBO(beta=beta)
        ppl_vae.fit(model, guide, x, objective=objective, max_epochs=5, batch_size=50, seed=0)
        weights.append([*model.parameters(), *guide.parameters()])
    for one, other in zip(*weights, strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_a_noise_that_is_too_large_is_not_answered_by_a_beta_where_it_can_be_learned() -> None:
    """Nor where a controller sets beta, or the model sums out what beta would weight."""
    known: dict[str, Any] = {"suiting_beta": 0.01}
    for likelihood in (Gaussian(3.0), LearnedGaussian(3.0)):
        model = VAE((6,), 2, MLP((8,)), likelihood)
        assert "OptimalGaussian()" in typed("decoder noise", model=model, **known)
    model = VAE((6,), 2, MLP((8,)), DiscretizedLogistic())
    assert "LinearWarmup" in typed("decoder noise", model=model, **known)
    own = Own(dist.Normal)
    assert "ELBO(beta=0.01)" in typed("decoder noise", model=own, **known)
    assert "ELBO(beta=0.005)" in typed("decoder noise", model=own, beta=0.5, **known)
    assert typed("decoder noise", model=own, summed=True, **known) == ""
    assert (
        typed("decoder noise", model=own, objective=ELBO(beta=TargetRate(nats=2.0)), **known) == ""
    )
    assert typed("decoder noise", model=own) == ""


def test_surplus_dimensions_may_be_left_out_of_a_run() -> None:
    def sized(model: Any, guide: Any, active: int = 1, unused: int = 2) -> str:
        return options("surplus dimensions", model=model, guide=guide, active=active, unused=unused)

    vae, guide = VAE((6,), 3, MLP((8,))), MeanField((6,), 3, MLP((8,)))
    assert sized(vae, guide) == "train --model.latent_dim 1 --guide.latent_dim 1"
    assert sized(vae, guide, 0, 3) == "train --model.latent_dim 1 --guide.latent_dim 1"
    assert sized(vae, guide, 2, 1) == "train --model.latent_dim 2 --guide.latent_dim 2"
    pca = ProbabilisticPCA((6,), 3)
    assert sized(pca, Exact(pca)) == "train --model.latent_dim 1"
    assert sized(vae, guide, 2, 2) == ""  # there are other latents, too
    assert sized(vae, OwnGuide()) == ""
    chains = VAE((6,), 4, MLP((8,)), prior=AutoregressivePrior(chains=2))
    assert sized(chains, MeanField((6,), 4, MLP((8,))), 3, 1) == ""  # it takes no 3 latents
    assert sized(Own(dist.Normal), guide) == ""
    layers = HierarchicalVAE((6,), (2, 1), MLP((8,)))
    assert sized(layers, BottomUp((6,), (2, 1), MLP((8,)))) == ""


@pytest.mark.parametrize("cause", ["surplus dimensions", "small means"])
def test_where_nothing_is_wrong_the_words_say_so(cause: str) -> None:
    assert "nothing has to be done" in CAUSES[cause].remedy


def functions() -> tuple[Any, Any, Any]:
    """A model and a guide that refer to modules, and what they refer to."""
    decoder, encoder, known = nn.Linear(3, 10), nn.Linear(5, 6), nn.Linear(10, 5)
    known.requires_grad_(False)

    def model(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            code = pyro.sample("code", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
            pyro.sample("data", dist.Normal(decoder(code), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        loc, scale = encoder(known(x)).chunk(2, -1)
        with pyro.plate("rows", len(x)):
            pyro.sample("code", dist.Normal(loc, nn.functional.softplus(scale)).to_event(1))

    return model, guide, (decoder, encoder, known)


class Both(nn.Module):
    """A module of which both programs are methods."""

    def __init__(self) -> None:
        super().__init__()
        self.own_model, self.own_guide, parts = functions()
        self.parts = nn.ModuleList(parts)

    def model(self, x: Tensor) -> None:
        self.own_model(x)

    def guide(self, x: Tensor) -> None:
        self.own_guide(x)


@pytest.mark.parametrize("kind", ["functions", "methods", "modules"])
def test_new_weights_of_any_programs(kind: str) -> None:
    """Those that are trained, and no others: an encoder that is there already stays as it is."""
    model: Any
    guide: Any
    if kind == "functions":
        model, guide, parts = functions()
    elif kind == "methods":
        both = Both()
        model, guide, parts = both.model, both.guide, tuple(both.parts)
    else:
        model, guide, parts = VAE((10,), 3, MLP(())), MeanField((10,), 3, MLP(())), None
        guide.head.requires_grad_(False)
        decoder = next(part for part in model.decoder.modules() if isinstance(part, nn.Linear))
        parts = (decoder, decoder, guide.head)
    code, _ = what_to_type("dead encoder", replace(FACTS, model=model, guide=guide))
    if kind == "modules":
        code = with_new_weights(model, guide, "ppl_vae.fit(model, guide, x, max_epochs=200)")
    assert may_be_run(code)
    before = [part.weight.detach().clone() for part in parts]
    code = code[: code.index("ppl_vae.fit")]
    exec(code, {"ppl_vae": ppl_vae, "torch": torch, "model": model, "guide": guide})
    same = [torch.equal(part.weight, old) for part, old in zip(parts, before, strict=True)]
    assert same == [False, False, True]
