"""analyses/collapse.py: linear VAEs lose their latents at the weights of the KL at which they have to."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest
import torch
from scripts import ROOT
from torch import Tensor

from ppl_vae.data import load_data
from ppl_vae.rate_distortion import linear_optimum

LATENTS = 6


@pytest.fixture
def collapse(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "analyses"))
    return importlib.import_module("collapse")


@pytest.fixture(scope="module")
def digits() -> Tensor:
    return load_data("digits", seed=0).train[:1000] / 16


def spectrum(x: Tensor) -> tuple[Tensor, float]:
    """The eigenvalues of the covariance, and the noise that is best at beta = 1."""
    values = torch.linalg.eigvalsh(torch.cov(x.flatten(1).double().T, correction=0)).flip(0)
    return values, float(values[LATENTS:].mean())


def test_the_start_is_the_posterior_of_the_best_weights(
    collapse: ModuleType, digits: Tensor
) -> None:
    _, noise = spectrum(digits)
    model, guide = collapse.linear_pair(digits, noise, LATENTS)
    torch.testing.assert_close(
        guide.encode(digits[:20]).mean, model.posterior(digits[:20]).mean, atol=1e-4, rtol=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "alive",
    [
        pytest.param(6, marks=pytest.mark.slow),
        pytest.param(4, marks=pytest.mark.slow),
        3,
        pytest.param(0, marks=pytest.mark.slow),
    ],
)
def test_latents_die_at_their_eigenvalues(collapse: ModuleType, digits: Tensor, alive: int) -> None:
    """Between two distant thresholds l_i / s^2 those above are active, and the rate is that of the best VAE."""
    values, noise = spectrum(digits)
    thresholds = [1e3, *(values / noise).tolist()]
    beta = (thresholds[alive] * thresholds[alive + 1]) ** 0.5
    best = linear_optimum(values, noise, beta, latent_dim=LATENTS)
    assert int(best.active.sum()) == alive
    family = collapse.Family(
        lambda: collapse.linear_pair(digits, noise, LATENTS),
        *(digits, digits, collapse.Sizes(latents=LATENTS, epochs=400), 0.01),
        batch_size=500,
    )
    found = family.train("linear", beta)
    assert found.active == alive
    assert found.rate == pytest.approx(best.rate, abs=0.05)
