"""Addresses of the flat layout still lead to what they offered, and say where it is now."""

from __future__ import annotations

import importlib
import sys

import pytest

import ppl_vae
from ppl_vae.guides import SemiAmortized
from ppl_vae.models import VAE
from ppl_vae.objectives import LinearWarmup
from ppl_vae.runs import import_by_name

OFFERED = {
    "ais": "Annealed annealed_importance_sampling",
    "arviz_bridge": "to_arviz",
    "batches": "Batches DataLike",
    "em_plots": "climb components",
    "fitting": "Fit fit DivergenceError",
    "flows": "FlowDistribution shrink_to_identity zuko",
    "gaps": "Gaps inference_gaps",
    "gumbel": "GumbelSoftmaxELBO",
    "handlers": "PairError ScaleLatents Substitute latent_sites observed_sites sample_sites unscaled",
    "layout": "survey",
    "linear_gaussian": "LinearGaussian regress regression_statistics",
    "markov_chain": "MarkovChain sample_steps",
    "posterior_grid": "PosteriorGrid guide_on_grid posterior_grid",
    "posterior_plots": "gaps_plot posterior_contours",
    "refitting": "refit_guide",
    "reports": "Generator",
    "rows": "Layout RowDensities posterior_means sample_rows stated_moment",
    "sandwich": "Sandwich bidirectional_monte_carlo",
    "schedules": "Cyclical LinearWarmup Schedule",
    "models.vae": "VAE",
    "models.probabilistic_pca": "ProbabilisticPCA",
    "models.vamp_prior": "VampPrior",
    "guides.semi_amortised": "SemiAmortised",
}


@pytest.mark.parametrize("address", OFFERED)
def test_an_old_address_leads_to_its_names(address: str) -> None:
    name = f"ppl_vae.{address}"
    sys.modules.pop(name, None)
    with pytest.warns(DeprecationWarning, match=f"{name} has moved: import its names from ppl_vae"):
        module = importlib.import_module(name)
    for offered in OFFERED[address].split():
        assert getattr(module, offered) is not None
    with pytest.raises(AttributeError):
        module.no_such_name  # noqa: B018


@pytest.mark.parametrize(
    ("name", "now"),
    [
        ("ppl_vae.models.vae.VAE", VAE),
        ("ppl_vae.guides.SemiAmortised", SemiAmortized),
        ("ppl_vae.guides.semi_amortised.SemiAmortised", SemiAmortized),
        ("ppl_vae.schedules.LinearWarmup", LinearWarmup),
    ],
)
def test_a_class_path_of_an_older_run_is_found_in_silence(name: str, now: type) -> None:
    assert import_by_name(name) is now


@pytest.mark.parametrize("name", ["check", "refit_prior"])
def test_no_module_shadows_a_function(name: str) -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(f"ppl_vae.{name}")
    assert callable(getattr(ppl_vae, name))
