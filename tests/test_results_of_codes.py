"""Codes beside other latents: what `compare` says of their runs, and what `to_arviz` gives, value by value."""

from __future__ import annotations

import itertools
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ppl_vae import diagnose, evaluate, load_run, save_run
from ppl_vae.codes import RandomStart, VectorQuantizer
from ppl_vae.evaluation import to_arviz
from ppl_vae.guides import HierarchicalQuantizingEncoder, MeanField, QuantizingEncoder
from ppl_vae.models import VAE, VQVAE, VQVAE2, IndependentCodes
from ppl_vae.networks import MLP, GridPyramid, Slots
from ppl_vae.plots import comparison_plot
from ppl_vae.runs import Comparison

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    import arviz as az

N, DRAWS = 60, 50
SHAPE = (1, 4, 4)
NETWORK = MLP((8,))
SLOTS = Slots(3, NETWORK)


@pytest.fixture(scope="module")
def x() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(N, *SHAPE, generator=generator) > 0.5).float()


def plain(codes: int) -> VectorQuantizer:
    return VectorQuantizer(codes, 2, start=RandomStart())


def codes_of(codes: int) -> tuple[Any, Any]:
    """Three codes for a row, with a prior that prefers some."""
    torch.manual_seed(codes)
    model = VQVAE(SHAPE, plain(codes), SLOTS, prior=IndependentCodes()).eval()
    guide = QuantizingEncoder(model, SLOTS).eval()
    prior: Any = model.prior
    with torch.no_grad():
        prior.logits.normal_()
        for parameter in guide.parameters():
            parameter.mul_(3)  # rows differ in their codes
    return model, guide


def of_levels() -> tuple[Any, Any]:
    torch.manual_seed(0)
    pyramid = GridPyramid(4, halvings=(1, 1), blocks=0)
    model = VQVAE2(SHAPE, [plain(6), plain(5)], pyramid, prior=IndependentCodes()).eval()
    with torch.no_grad():
        for parameter in model.prior.parameters():
            parameter.normal_()
    return model, HierarchicalQuantizingEncoder(model, pyramid).eval()


def prior_of_levels(model: Any, z: tuple[Tensor, Tensor]) -> Tensor:
    """log p(z2) + log p(z1 | z2)."""
    found: Tensor = model.prior.given().log_prob(z[1]) + model.prior.given(z[1]).log_prob(z[0])
    return found


# -- compare ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(x: Tensor, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Runs of a VAE, of codes whose joint values are too many to be summed over, and of few codes."""
    torch.manual_seed(0)
    pairs: dict[str, tuple[Any, Any]] = {
        "vae": (VAE(SHAPE, 2, NETWORK), MeanField(SHAPE, 2, NETWORK)),
        "codes": codes_of(40),
        "levels": of_levels(),
        "few": codes_of(3),
    }
    place: Path = tmp_path_factory.mktemp("runs")
    for name, pair in pairs.items():
        found = evaluate(*pair, x, num_samples=100, seed=0, progress=False)
        told = diagnose(*pair, x, seed=0, progress=False)
        save_run(place / name, *pair, evaluation=found, diagnosis=told, rows=x)
    return {name: (load_run(place / name, *pair), pair) for name, pair in pairs.items()}


def columns(found: Comparison) -> dict[str, dict[str, str]]:
    head, *lines = found.table()
    return {line[0]: dict(zip(head[1:], line[1:], strict=True)) for line in lines}


@pytest.mark.slow
def test_runs_of_codes_stand_beside_others(runs: dict[str, Any], x: Tensor) -> None:
    found = Comparison.of([run for run, _ in runs.values()])
    assert found.names == ("vae", "codes", "levels", "few")
    table = columns(found)
    bounds = {}
    for name in ("codes", "levels", "few"):
        run, (model, guide) = runs[name]
        with torch.no_grad():
            z = guide.codes(x)
            if name == "levels":
                log_p, log_prior = model.decode(*z).log_prob(x), prior_of_levels(model, z)
            else:
                log_p, log_prior = model.decode(z).log_prob(x), model.prior().log_prob(z)
        bounds[name] = (log_p + log_prior).double()
        assert table[name]["ELBO"] == f"{float(bounds[name].mean()):.2f}"
        assert table[name]["rate"] == f"{-float(log_prior.double().mean()):.2f}"
        assert table[name]["distortion"] == f"{-float(log_p.double().mean()):.2f}"
        used = [len(part.unique()) for part in (z if name == "levels" else (z,))]
        values = {"codes": 40, "levels": 11, "few": 3}[name]
        assert table[name]["active"] == f"{sum(used)} of {values} codes"
        if name != "few":
            elbo = run.evaluation["elbo"]["mean"]
            assert table[name]["log p(x)"] == f"≥ {elbo:.2f}"
            assert table[name]["bits/dim"] == f"≤ {-elbo / 16 / math.log(2):.4f}"
            assert table[name]["unreliable"] == "-"
            assert table[name]["Δ log p(x)"] == "not known"
    assert table["vae"]["active"] == str(runs["vae"][0].diagnosis["active_units"])
    # Of few codes log p(x) is the sum over all of them.
    model, _ = runs["few"][1]
    every = torch.tensor(list(itertools.product(range(3), repeat=3)))
    with torch.no_grad():
        joint = model.decode(every[:, None]).log_prob(x) + model.prior().log_prob(every)[:, None]
    exact = joint.double().logsumexp(0)
    assert table["few"]["log p(x)"] == f"{float(exact.mean()):.2f}"
    # Differences are those of paired rows.
    first = torch.tensor(runs["vae"][0].evaluation_rows["elbo"], dtype=torch.float64)
    d = bounds["codes"] - first
    error = float(d.std()) / math.sqrt(N)
    assert table["codes"]["Δ ELBO"] == f"{float(d.mean()):+.2f} ± {error:.2f}"
    (caption,) = found.caption()
    how = "by importance sampling with 100 samples, exact for few, at least the ELBO for codes, levels"
    assert how in caption
    assert "not defined" not in str(found)
    comparison_plot(found).canvas.draw()


def test_codes_alone_are_compared_by_their_bounds(runs: dict[str, Any]) -> None:
    found = Comparison.of([runs["codes"][0], runs["levels"][0]])
    assert "log p(x) at least the ELBO;" in found.caption()[0]
    assert columns(found)["levels"]["Δ log p(x)"] == "not known"
    assert not list(found.doubts())


# -- ArviZ -----------------------------------------------------------------------------------------------


def shares(drawn: np.ndarray[Any, Any], codes: int) -> Tensor:
    """How often each code was drawn at each position, `(*positions, K)`."""
    flat = torch.from_numpy(drawn).reshape(-1, *drawn.shape[3:]).long()
    return torch.nn.functional.one_hot(flat, codes).double().mean(0)


def close(found: Tensor, p: Tensor, n: int) -> None:
    """Shares of n draws are probabilities up to five standard errors."""
    assert bool(((found - p).abs() <= 5 * (p * (1 - p) / n).sqrt() + 1e-9).all())


def test_arviz_is_given_the_codes_the_prior_and_what_is_decoded(x: Tensor) -> None:
    model, guide = codes_of(40)
    data = to_arviz(model, guide, x, num_samples=10, num_draws=DRAWS, seed=0)
    z = guide.codes(x)
    posterior = data.posterior["z"]
    assert posterior.dims == ("chain", "draw", "row", "z_dim_0")
    assert posterior.shape == (1, DRAWS, N, 3)
    assert (posterior.values == z.numpy()).all()  # the guide is certain
    drawn = data.prior["z"].values
    p = model.prior().base_dist.probs.detach().double()
    close(shares(drawn, 40), p, DRAWS * N)
    # Pixels of the predictive are those of the decoder, given these codes.
    with torch.no_grad():
        means = model.decode(z).mean.double()
        of_prior = model.decode(torch.from_numpy(drawn[0])).mean.double()
    close(torch.from_numpy(data.posterior_predictive["x"].values[0]).mean(0), means, DRAWS)
    close(
        torch.from_numpy(data.prior_predictive["x"].values[0]).mean((0, 1)),
        of_prior.mean((0, 1)),
        DRAWS * N,
    )
    assert (data.observed_data["x"].values == x.numpy()).all()
    with torch.no_grad():
        log_p, log_prior = model.decode(z).log_prob(x), model.prior().log_prob(z)
    for name, expected in {
        "elbo": log_p + log_prior,
        "rate": -log_prior,
        "distortion": -log_p,
    }.items():
        found = torch.from_numpy(data.sample_stats[name].values)
        assert_close(found, expected.double(), rtol=1e-5, atol=1e-5)


def test_a_score_that_is_not_known_is_an_error_of_arviz(x: Tensor) -> None:
    data = to_arviz(*codes_of(40), x, num_samples=10, num_draws=DRAWS, seed=0)
    assert not hasattr(data, "log_likelihood")
    with pytest.raises((TypeError, ValueError, KeyError), match=r"log.likelihood"):
        az.loo(data)


def test_the_score_of_few_codes_is_their_sum(x: Tensor) -> None:
    model, guide = codes_of(3)
    data = to_arviz(model, guide, x, num_draws=DRAWS, seed=0)
    every = torch.tensor(list(itertools.product(range(3), repeat=3)))
    with torch.no_grad():
        joint = model.decode(every[:, None]).log_prob(x) + model.prior().log_prob(every)[:, None]
    found = torch.from_numpy(data.log_likelihood["x"].values.mean((0, 1)))
    assert_close(found, joint.double().logsumexp(0), rtol=1e-5, atol=1e-5)


def test_arviz_is_given_the_codes_of_all_levels(x: Tensor) -> None:
    model, guide = of_levels()
    data = to_arviz(model, guide, x, num_samples=10, num_draws=DRAWS, seed=0)
    z = guide.codes(x)
    for name, of_level, side in (("z1", z[0], 2), ("z2", z[1], 1)):
        found = data.posterior[name]
        assert found.dims == ("chain", "draw", "row", f"{name}_dim_0", f"{name}_dim_1")
        assert found.shape == (1, DRAWS, N, side, side)
        assert (found.values == of_level.numpy()).all()
    with torch.no_grad():
        log_p = model.decode(*z).log_prob(x).double()
    assert_close(torch.from_numpy(data.sample_stats["distortion"].values), -log_p)
    rate = -prior_of_levels(model, z).detach().double()
    assert_close(torch.from_numpy(data.sample_stats["rate"].values), rate, rtol=1e-5, atol=1e-5)
    for name, p in (("z2", model.prior.given()), ("z1", model.prior.given(z[1]))):
        q = (
            p.base_dist.probs.detach()
            .double()
            .reshape(-1, *p.event_shape, p.base_dist.logits.shape[-1])
        )
        close(shares(data.prior[name].values, q.shape[-1]), q[0], DRAWS * N)
