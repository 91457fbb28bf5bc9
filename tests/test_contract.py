"""What every pair of ours has to do: one list of constructors, and adding a row adds the tests."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pyro import poutine
from test_closed_form_models import MODELS as CLOSED_FORM_MODELS
from torch import Tensor, nn

import ppl_vae.guides
import ppl_vae.models
from ppl_vae import check, evaluate, fit, load_run, save_run, to_arviz
from ppl_vae.guides import (
    BottomUp,
    CategoricalEncoder,
    Enumerated,
    Exact,
    FullCovariance,
    InverseAutoregressive,
    LowRank,
    MaskedAutoregressive,
    MeanField,
    MixtureOfGaussians,
    NeuralSpline,
    PerRow,
    Recurrent,
    SemiAmortised,
    TopDown,
)
from ppl_vae.likelihoods import (
    Bernoulli,
    Binomial,
    DiscretizedLogistic,
    Gaussian,
    LearnedGaussian,
    Likelihood,
    OptimalGaussian,
)
from ppl_vae.models import (
    VAE,
    DiagonalNormal,
    FactorAnalysis,
    FlowPrior,
    GaussianHMM,
    GaussianMixture,
    HierarchicalVAE,
    MixturePrior,
    ProbabilisticPCA,
    StandardNormal,
    VampPrior,
)
from ppl_vae.models.priors import Prior
from ppl_vae.networks import MLP, Convolutional
from ppl_vae.objectives import (
    ELBO,
    ImportanceWeightedELBO,
    LinearWarmup,
    MeanFieldELBO,
    Objective,
    TraceELBO,
)
from ppl_vae.pairs import Pair, latent_sites, observed_sites

SHAPE = (1, 8, 8)
ROWS = 16

# What fits together. A likelihood, a decoder network, a guide, a model: each is one row.
LIKELIHOODS: dict[str, tuple[Callable[[], Likelihood], Callable[[Tensor], Tensor]]] = {
    "Bernoulli": (Bernoulli, lambda u: (u > 0.5).float()),
    "Binomial": (lambda: Binomial(16), lambda u: (16 * u).round()),
    "Gaussian": (lambda: Gaussian(0.5), lambda u: u),
    "LearnedGaussian": (LearnedGaussian, lambda u: u),
    "OptimalGaussian": (OptimalGaussian, lambda u: u),
    "DiscretizedLogistic": (DiscretizedLogistic, lambda u: (255 * u).round() / 255),
}
NETWORKS: dict[str, Callable[[], Any]] = {
    "MLP": lambda: MLP(hidden=(8,)),
    "Convolutional": lambda: Convolutional((4, 6), 8),
}
MODELS: dict[str, Callable[[], Any]] = {
    "VAE": lambda: VAE(SHAPE, 2, MLP(hidden=(8,)), Gaussian(0.5)),
    "PCA": lambda: ProbabilisticPCA(SHAPE, 2),
    "PCA-fixed-sigma": lambda: ProbabilisticPCA(SHAPE, 2, sigma=0.5, learn_sigma=False),
}
GUIDES: dict[str, Callable[[Any], Any]] = {
    "MeanField": lambda model: MeanField(SHAPE, 2, MLP(hidden=(8,))),
    "MeanField-Convolutional": lambda model: MeanField(SHAPE, 2, Convolutional((4, 6), 8)),
    "FullCovariance": lambda model: FullCovariance(SHAPE, 2, MLP(hidden=(8,))),
    "Exact": Exact,
}
PRIORS: dict[str, Prior] = {
    "StandardNormal": StandardNormal(),
    "DiagonalNormal": DiagonalNormal(),
    "MixturePrior": MixturePrior(components=3),
    "VampPrior": VampPrior(components=4),
    "FlowPrior": FlowPrior(transforms=2, hidden=(8,)),
}
# One model is enough for each of these: what they cost is time.
FAMILIES: dict[str, Callable[[Any], Any]] = {
    "LowRank": lambda model: LowRank(SHAPE, 2, MLP(hidden=(8,))),
    "MixtureOfGaussians": lambda model: MixtureOfGaussians(SHAPE, 2, MLP(hidden=(8,))),
    "MaskedAutoregressive": lambda model: MaskedAutoregressive(SHAPE, 2, MLP(hidden=(8,)), 2, (8,)),
    "InverseAutoregressive": lambda model: InverseAutoregressive(
        SHAPE, 2, MLP(hidden=(8,)), 2, (8,)
    ),
    "NeuralSpline": lambda model: NeuralSpline(SHAPE, 2, MLP(hidden=(8,)), 2, (8,)),
}
OBJECTIVES: dict[str, Objective] = {
    "ELBO": ELBO(),
    "TraceELBO": TraceELBO(num_particles=2),
    "MeanFieldELBO": MeanFieldELBO(),
    "ImportanceWeightedELBO": ImportanceWeightedELBO(num_particles=3),
    "beta": ELBO(beta=LinearWarmup(1, start=0.5)),
    "free-bits": ELBO(free_bits=0.1),
}

Constructor = Callable[[], tuple[nn.Module, nn.Module, Tensor]]


def uniform() -> Tensor:
    return torch.rand(ROWS, *SHAPE, generator=torch.Generator().manual_seed(1))


def decoder_row(likelihood: str, network: str) -> Constructor:
    def make() -> tuple[nn.Module, nn.Module, Tensor]:
        torch.manual_seed(0)
        build, to_data = LIKELIHOODS[likelihood]
        model = VAE(SHAPE, 2, NETWORKS[network](), build())
        return model, MeanField(SHAPE, 2, MLP(hidden=(8,))), to_data(uniform())

    return make


def guide_row(model: str, guide: str) -> Constructor:
    def make() -> tuple[nn.Module, nn.Module, Tensor]:
        torch.manual_seed(0)
        made = MODELS[model]()
        return made, (GUIDES | FAMILIES)[guide](made), uniform()

    return make


def whole(model: Callable[[], nn.Module], guide: Callable[[Any, Tensor], nn.Module]) -> Constructor:
    def make() -> tuple[nn.Module, nn.Module, Tensor]:
        torch.manual_seed(0)
        made = model()
        return made, guide(made, uniform()), uniform()

    return make


def prior_row(prior: Prior) -> Constructor:
    def make() -> tuple[nn.Module, nn.Module, Tensor]:
        torch.manual_seed(0)
        model: Any = VAE(SHAPE, 2, MLP(hidden=(8,)), Gaussian(0.5), prior)
        guide = MeanField(SHAPE, 2, MLP(hidden=(8,)))
        if isinstance(prior, VampPrior):
            model.prior.attach_guide(guide)
            with torch.no_grad():
                guide.head.weight.mul_(10.0)  # rows apart, so that their KL exceeds the free bits
        return model, guide, uniform()

    return make


def semi_amortised(model: nn.Module, differentiable: bool) -> SemiAmortised:
    options: dict[str, Any] = {"steps": 2, "num_samples": 2, "differentiable": differentiable}
    return SemiAmortised(model, SHAPE, 2, MLP(hidden=(8,)), **options)


def hierarchical() -> HierarchicalVAE:
    return HierarchicalVAE(SHAPE, (3, 2), MLP(hidden=(8,)), MLP(hidden=(4,)), Gaussian(0.5))


PAIRS: dict[str, Constructor] = {
    f"{likelihood}-{network}": decoder_row(likelihood, network)
    for likelihood in LIKELIHOODS
    for network in NETWORKS
} | {
    f"{model}-{guide}": guide_row(model, guide)
    for model in MODELS
    for guide in GUIDES
    if not (guide == "Exact" and model == "VAE")  # it knows no posterior
}
PAIRS |= {f"VAE-{guide}": guide_row("VAE", guide) for guide in FAMILIES}
PAIRS |= {f"VAE-{prior}": prior_row(PRIORS[prior]) for prior in PRIORS}

# Pairs of their own kind: model, guide and rows together.
PAIRS |= {
    "VAE-SemiAmortised": whole(
        MODELS["VAE"], lambda model, x: semi_amortised(model, differentiable=True)
    ),
    "VAE-SemiAmortised-constant": whole(
        MODELS["VAE"], lambda model, x: semi_amortised(model, differentiable=False)
    ),
    "PCA-PerRow": whole(
        MODELS["PCA"], lambda model, x: PerRow(FullCovariance(SHAPE, 2, MLP(hidden=(8,))), x)
    ),
    "GaussianMixture-Enumerated": whole(
        lambda: GaussianMixture(SHAPE, 3, "diagonal"), lambda model, x: Enumerated(model)
    ),
    "GaussianMixture-CategoricalEncoder": whole(
        lambda: GaussianMixture(SHAPE, 3, "diagonal"),
        lambda model, x: CategoricalEncoder(SHAPE, 3, MLP(hidden=(8,))),
    ),
    "FactorAnalysis-MeanField": whole(
        lambda: FactorAnalysis(SHAPE, 2), lambda model, x: MeanField(SHAPE, 2, MLP(hidden=(8,)))
    ),
    "GaussianHMM-Recurrent": lambda: (
        GaussianHMM((4, 16), 2),
        Recurrent((4, 16), 2, hidden=4),
        uniform().reshape(ROWS, 4, 16),
    ),
    "Hierarchical-BottomUp": whole(
        hierarchical, lambda model, x: BottomUp(SHAPE, (3, 2), MLP(hidden=(8,)), MLP(hidden=(4,)))
    ),
    "Hierarchical-TopDown": whole(
        hierarchical,
        lambda model, x: TopDown(model, SHAPE, (3, 2), MLP(hidden=(8,)), MLP(hidden=(4,))),
    ),
}
# Objectives that are wrong for a pair, which is told.
UNSUITED: dict[Constructor, set[str]] = {
    PAIRS["GaussianMixture-Enumerated"]: {"MeanFieldELBO", "free-bits"},
    PAIRS["GaussianMixture-CategoricalEncoder"]: {"MeanFieldELBO", "free-bits"},
    PAIRS["GaussianHMM-Recurrent"]: {"MeanFieldELBO", "free-bits"},
    PAIRS["Hierarchical-BottomUp"]: {"MeanFieldELBO"},
}
pairs = pytest.mark.parametrize("make", PAIRS.values(), ids=PAIRS.keys())


@pairs
def test_check_finds_nothing(make: Constructor) -> None:
    model, guide, x = make()
    ragged = not Pair(model, guide).keeps_rows
    for name, objective in OBJECTIVES.items():
        options: dict[str, Any] = {"objective": objective, "max_epochs": 2, "ragged": ragged}
        if name in UNSUITED.get(make, ()):
            with contextlib.suppress(ValueError):  # of an objective that can not even be made
                assert not check(model, guide, x, **options).ok
        else:
            report = check(model, guide, x, **options)
            assert report.ok, str(report)


@pairs
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_parameter_is_trained(make: Constructor, name: str) -> None:
    if name in UNSUITED.get(make, ()):
        return
    objective = OBJECTIVES[name]
    model, guide, x = make()
    pair = Pair(model, guide)
    batch_size = ROWS if pair.keeps_rows else 10
    before = {n: p.detach().clone() for n, p in pair.parameters(x).items()}
    options: dict[str, Any] = {
        "capture": objective == ELBO()
    }  # recording takes longer than two steps
    options |= {"batch_size": batch_size}
    fitted = fit(model, guide, x, objective=objective, max_epochs=1, seed=0, **options)
    row = fitted.history[-1]
    assert all(math.isfinite(v) for v in row.values()), row
    assert fitted.steps == math.ceil(ROWS / batch_size)
    stuck = [n for n, p in pair.parameters(x).items() if torch.equal(p, before[n])]
    assert not stuck, f"no gradient reached {stuck}"


@pairs
def test_evaluates_saves_loads_and_exports(make: Constructor, tmp_path: Path) -> None:
    model, guide, x = make()
    fit(model, guide, x, max_epochs=1, seed=0, capture=False)
    evaluation = evaluate(model, guide, x, num_samples=8, seed=1)
    assert evaluation.num_rows == ROWS
    assert torch.isfinite(evaluation.log_likelihood.values).all()
    assert (evaluation.elbo.values <= evaluation.log_likelihood.values + 1e-3).all()
    if isinstance(guide, Exact):
        assert torch.allclose(
            evaluation.log_likelihood.values,
            model.log_evidence(x),  # type: ignore[operator]
            atol=1e-3,
        )
        assert torch.allclose(evaluation.ess, torch.tensor(8.0), atol=1e-2)

    state = Pair.of(model, guide).state()
    save_run(tmp_path / "run", model, guide)
    other_model, other_guide, _ = make()
    with torch.no_grad():
        for parameter in [*other_model.parameters(), *other_guide.parameters()]:
            parameter.add_(1.0)
    run = load_run(tmp_path / "run", other_model, other_guide)
    loaded = Pair.of(run.model, run.guide).state()
    assert loaded.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(loaded[name], value), name
    again = evaluate(run.model, run.guide, x, num_samples=8, seed=1)
    assert torch.equal(again.log_likelihood.values, evaluation.log_likelihood.values)

    exported = to_arviz(model, guide, x, num_samples=4, num_draws=3, seed=1)
    trace = poutine.trace(model).get_trace(x)
    in_guide = poutine.trace(guide).get_trace(x).nodes
    for name, site in latent_sites(trace).items():
        if name in in_guide:  # otherwise it is summed out
            event = site["fn"].event_shape
            assert exported["posterior"][name].shape == (1, 3, ROWS, *event)
    for name, site in observed_sites(trace).items():
        event = site["fn"].event_shape
        assert exported["posterior_predictive"][name].shape == (1, 3, ROWS, *event)
    for values in exported["log_likelihood"].data_vars.values():  # of each site, or of all jointly
        assert values.shape[-1] == ROWS


def test_every_export_has_a_row() -> None:
    made = [make() for make in PAIRS.values()]
    seen = {type(m).__name__ for m, _, _ in made} | {type(g).__name__ for _, g, _ in made}
    seen |= {type(make()[0]).__name__ for make in CLOSED_FORM_MODELS.values()}
    seen |= {type(prior).__name__ for prior in PRIORS.values()}
    exported = {*dir(ppl_vae.models), *dir(ppl_vae.guides)} - {"Amortized"}  # which is abstract
    assert exported <= seen
    of_rows = {type(m.likelihood) for m, _, _ in made if isinstance(m, VAE)}
    ours = {kind for kind in Likelihood.__subclasses__() if kind.__module__.startswith("ppl_vae")}
    assert ours == of_rows
