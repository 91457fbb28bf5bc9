"""What every pair of ours has to do: the rows of catalogue.PAIRS."""

from __future__ import annotations

import inspect
import math
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from catalogue import (
    CLOSED_FORM_MODELS,
    CODE_PRIORS,
    COLORS,
    LIKELIHOODS,
    NETWORKS,
    OBJECTIVES,
    ONLY,
    PAIRS,
    PRIORS,
    ROWS,
    TRIED_WITH,
    UNSUITED,
)
from pyro import poutine

import ppl_vae.guides
import ppl_vae.models
from ppl_vae import check, evaluate, fit, load_run, save_run, to_arviz
from ppl_vae.checks import Report
from ppl_vae.guides import Exact, PerRow, SemiSupervised
from ppl_vae.likelihoods import Likelihood
from ppl_vae.networks import Network
from ppl_vae.objectives import ELBO, Objective
from ppl_vae.pairs import ImproperStandIns, Pair, as_args, latent_sites, observed_sites

# What a network and a likelihood have to agree on is how many numbers describe an element of x: one, two, many.
# Every likelihood is tried with one network, and one of each of these with the others.
OTHERS = {
    f"{likelihood}-{network}"
    for likelihood in LIKELIHOODS
    for network in ("Convolutional", "AutoregressiveDecoder")
    if likelihood not in ("Bernoulli", "DiscretizedLogistic", "Categorical")
}
SUITED = [
    (o, name)
    for name in PAIRS
    for o in OBJECTIVES
    if name in ONLY.get(o, PAIRS)
    and o in TRIED_WITH.get(name, OBJECTIVES)
    and o not in UNSUITED.get(name, ())
]


def checked(name: str, objective: str) -> Report:
    model, guide, x = PAIRS[name]()
    ragged = not Pair(model, guide).keeps_rows
    return check(model, guide, x, objective=OBJECTIVES[objective], max_epochs=2, ragged=ragged)


FIRST = {
    *{name: (objective, name) for objective, name in reversed(SUITED)}.values(),
    *{objective: (objective, name) for objective, name in reversed(SUITED)}.values(),
}
"""Every pair with its first objective, and every objective with its first pair."""
FIRST_OF_OBJECTIVES = {objective: (objective, name) for objective, name in reversed(SUITED)}


@pytest.mark.parametrize(
    ("objective", "name"),
    [
        pytest.param(*o, marks=() if o in FIRST_OF_OBJECTIVES.values() else pytest.mark.slow)
        for o in SUITED
    ],
)
def test_check_finds_nothing(objective: str, name: str) -> None:
    """`fit` checks each batch itself: the next test but one trains all of them, so that few are checked here.

    Labels train a classifier with `SemiSupervisedELBO` alone: see `tests/test_classes.py`.
    """
    report = checked(name, objective)
    told = [problem for problem in report.problems if "do not train the classifier" in str(problem)]
    assert len(told) == len(report.problems), str(report)
    assert bool(told) == (name == "SemiSupervised" and objective != "SemiSupervisedELBO")


FIRST_UNSUITED = {o: name for name in reversed(UNSUITED) for o in UNSUITED[name]}


# Of each objective its first pair; and of each pair one objective, by a number of its name: so each objective
# meets several pairs of each kind, and a new row changes nothing for the others.
@pytest.mark.parametrize(
    ("name", "objective", "words"),
    [
        pytest.param(
            *(name, o, unsuited[o]),
            marks=()
            if i == zlib.crc32(name.encode()) % len(unsuited) or name == FIRST_UNSUITED[o]
            else pytest.mark.slow,
            id=f"{name}-{o}",
        )
        for name, unsuited in UNSUITED.items()
        for i, o in enumerate(unsuited)
    ],
)
def test_check_says_why_an_objective_does_not_suit(name: str, objective: str, words: str) -> None:
    report = checked(name, objective)
    assert all(words in problem.message for problem in report.problems), str(report)
    assert report.errors


@pytest.mark.filterwarnings("ignore:.*do not train the classifier")
@pytest.mark.parametrize(
    ("objective", "name"),
    [
        pytest.param(*o, marks=() if o in FIRST and o[1] not in OTHERS else pytest.mark.slow)
        for o in SUITED
    ],
)
@pytest.mark.filterwarnings("ignore:'z' is discrete and is drawn as a whole")
def test_every_parameter_is_trained(objective: str, name: str) -> None:
    model, guide, x = PAIRS[name]()
    pair = Pair(model, guide)
    batch_size = ROWS if pair.keeps_rows else 10
    before = {n: p.detach().clone() for n, p in pair.parameters(x).items()}
    options: dict[str, Any] = {
        "capture": OBJECTIVES[objective] == ELBO()
    }  # recording takes longer than two steps
    options |= {"batch_size": batch_size}
    fitted = fit(model, guide, x, objective=OBJECTIVES[objective], max_epochs=1, seed=0, **options)
    row = fitted.history[-1]
    assert all(math.isfinite(v) for v in row.values()), row
    assert fitted.steps == math.ceil(ROWS / batch_size)
    now = pair.parameters(x)
    kept = {n for n in now if OBJECTIVES[objective].keeps(pair, n)}
    stuck = {n for n, p in now.items() if torch.equal(p, before[n])}
    assert stuck == kept, f"no gradient reached {stuck - kept}"


# Networks and contexts are built and trained with each of these above, and evaluated beside another one below.
LIKE_OTHERS = (
    *("Bernoulli-AutoregressiveDecoder", "DiscretizedLogistic-AutoregressiveDecoder"),
    *("Bernoulli-Convolutional", "Categorical-Convolutional", "Autoencoder-Convolutional"),
    *("ConditionalVAE-MeanField-AutoregressiveDecoder", "ConditionalVAE-MeanField-Convolutional"),
    *("ConditionalVAE-LowRank-linear", "VAE-InverseAutoregressive"),
    *("IndependentSegments-Exact", "IndependentSegments-WithinPicture"),
    *("VQVAE-VectorQuantizer-Gradient", "VQVAE-VectorQuantizer-SimVQ", "VQVAE-PixelCNNPrior"),
    *("VQVAE-TransformerPrior", "VQVAE2", "PottsSegments-StructuredMeanField"),
    *("PottsSegments-SegmentationEncoder", "TreeSegments-Exact"),
)


@pytest.mark.slow(only=LIKE_OTHERS)
@pytest.mark.filterwarnings("ignore:.*do not train the classifier")
@pytest.mark.parametrize(
    ("name", "every"),
    [
        *(pytest.param(name, False, id=name) for name in PAIRS if name not in OTHERS),
        *(pytest.param(name, True, id=f"{name}-every", marks=pytest.mark.slow) for name in PAIRS),
    ],
)
@pytest.mark.filterwarnings("ignore:'z' is discrete and is drawn as a whole")
def test_evaluates_saves_loads_and_exports(name: str, every: bool, tmp_path: Path) -> None:
    model, guide, x = PAIRS[name]()
    fit(model, guide, x, max_epochs=1, seed=0, capture=False)
    evaluation = evaluate(model, guide, x, num_samples=8, seed=1)
    assert evaluation.num_rows == ROWS
    assert torch.isfinite(evaluation.distortion.values).all()
    assert evaluation.elbo.missing or torch.isfinite(evaluation.elbo.values).all()
    points = evaluation.at_points or evaluation.certain
    assert points or torch.isfinite(evaluation.log_likelihood.values).all()
    # Where a sum over classes is taken at draws of the style, the ELBO has draws of its own.
    within = 1.0 if isinstance(guide, SemiSupervised) else 1e-3
    assert not (evaluation.elbo.values > evaluation.log_likelihood.values + within).any()
    if isinstance(guide, Exact):
        assert torch.allclose(
            evaluation.log_likelihood.values,
            model.log_evidence(*as_args(x)),  # type: ignore[operator]
            atol=1e-3,
        )
        assert torch.allclose(evaluation.ess, torch.tensor(8.0), atol=1e-2)

    state = Pair.of(model, guide).state()
    save_run(tmp_path / "run", model, guide)
    other_model, other_guide, _ = PAIRS[name]()
    with torch.no_grad():
        for parameter in [*other_model.parameters(), *other_guide.parameters()]:
            parameter.add_(1.0)
    runs = [load_run(tmp_path / "run", other_model, other_guide)]
    if not isinstance(guide, PerRow):  # its rows cannot be written down
        runs.append(load_run(tmp_path / "run"))
    for i, run in enumerate(runs):
        assert (type(run.model), type(run.guide)) == (type(model), type(guide))
        loaded = Pair.of(run.model, run.guide).state()
        assert loaded.keys() == state.keys()
        for name, value in state.items():
            assert torch.equal(loaded[name], value), name
        if i + 1 < len(runs) and not every:
            continue  # the weights are the same: it is enough to evaluate the pair that was built anew
        again = evaluate(run.model, run.guide, x, num_samples=8, seed=1)
        for quantity in ("distortion", "elbo", "log_likelihood"):
            found, expected = (getattr(of, quantity).values for of in (again, evaluation))
            torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)

    exported = to_arviz(model, guide, x, num_samples=4, num_draws=3, seed=1)
    trace = poutine.trace(ImproperStandIns(model)(model)).get_trace(*as_args(x))
    in_guide = poutine.trace(guide).get_trace(*as_args(x)).nodes
    for name, site in latent_sites(trace).items():
        if name in in_guide:  # otherwise it is summed out
            event = site["fn"].event_shape
            assert exported["posterior"][name].shape == (1, 3, ROWS, *event)
    for name, site in observed_sites(trace).items():
        event = site["fn"].event_shape
        assert exported["posterior_predictive"][name].shape == (1, 3, ROWS, *event)
    has_latents = bool(latent_sites(trace))
    assert ("prior" in exported) == (has_latents and not evaluation.elbo.missing)
    if evaluation.certain or evaluation.at_points or evaluation.elbo.missing:
        with pytest.raises((KeyError, AttributeError), match="log_likelihood"):
            exported["log_likelihood"]
        return
    assert exported["log_likelihood"].data_vars
    for values in exported["log_likelihood"].data_vars.values():  # of each site, or of all jointly
        assert values.shape[-1] == ROWS


def test_every_export_has_a_row() -> None:
    rows = [make() for make in PAIRS.values()]
    seen: list[Any] = [program for model, guide, _ in rows for program in (model, guide)]
    seen += [make()[0] for make in CLOSED_FORM_MODELS.values()]
    seen += PRIORS.values()
    seen += CODE_PRIORS.values()
    seen += COLORS.values()
    seen += [model.discriminator for model, *_ in rows if hasattr(model, "discriminator")]
    faces = (ppl_vae.models, ppl_vae.guides)
    exports = {getattr(face, name) for face in faces for name in dir(face)}
    classes = {kind for kind in exports if inspect.isclass(kind) and not inspect.isabstract(kind)}
    without = classes - {type(s) for s in seen}
    assert not without, f"add a row to tests/catalogue.py for {without}"


@pytest.mark.parametrize(
    ("base", "rows"),
    [
        (Likelihood, [likelihood.make() for likelihood in LIKELIHOODS.values()]),
        (Network, list(NETWORKS.values())),
        (Objective, list(OBJECTIVES.values())),
    ],
    ids=["likelihoods", "networks", "objectives"],
)
def test_every_subclass_has_a_row(base: type[Any], rows: list[Any]) -> None:
    def below(kind: type[Any]) -> set[type[Any]]:
        return {kind}.union(*map(below, kind.__subclasses__()))

    ours = {kind for kind in below(base) if kind.__module__.startswith("ppl_vae")}
    assert {kind for kind in ours if not inspect.isabstract(kind)} == {type(row) for row in rows}
