"""Old addresses still lead to what they offered, and say where it is now."""

from __future__ import annotations

import importlib
import sys
import warnings
from pathlib import Path

import pytest

import ppl_vae
from ppl_vae._moved import MODULES, OF_PACKAGES
from ppl_vae.guides import SemiAmortized
from ppl_vae.models import VAE
from ppl_vae.objectives import LinearWarmup
from ppl_vae.runs import build, import_by_name
from ppl_vae.runs.names import with_names_of_today

OFFERED = {
    "ais": "Annealed annealed_importance_sampling",
    "arviz_bridge": "to_arviz",
    "batches": "Batches device_of move",
    "checkpoints": "CorruptFileError write_bytes",
    "em_loop": "EMError",
    "em_plots": "climb components",
    "em_steps": "ClosedFormModel closed_form",
    "fitting": "Fit fit DivergenceError resolve_device",
    "flows": "FlowDistribution shrink_to_identity zuko",
    "gaps": "Gaps inference_gaps",
    "gumbel": "GumbelSoftmaxELBO",
    "handlers": "PairError ScaleLatents Substitute latent_sites observed_sites sample_sites unscaled",
    "layout": "survey",
    "linear_gaussian": "LinearGaussian regress regression_statistics",
    "markov_chain": "MarkovChain sample_steps",
    "mean_field": "mean_field_violations",
    "posterior_grid": "PosteriorGrid guide_on_grid posterior_grid",
    "posterior_plots": "gaps_plot posterior_contours",
    "problems": "PairWarning Problem Report",
    "recording": "CaptureError",
    "refinement": "maximise",
    "refitting": "refit_guide",
    "reports": "Comparison",
    "row_families": "own_family",
    "rows": "Layout RowDensities posterior_means sample_rows stated_moment",
    "sandwich": "Sandwich bidirectional_monte_carlo",
    "schedules": "Cyclical LinearWarmup Schedule",
    "guides.semi_amortised": "SemiAmortised",
    "models.autoregressive": "Autoregressive",
    "models.bernoulli_mixture": "BernoulliMixture",
    "models.categorical_hmm": "CategoricalHMM",
    "models.ctc": "CTC BLANK",
    "models.factor_analysis": "FactorAnalysis",
    "models.flow_prior": "FlowPrior",
    "models.gaussian_hmm": "GaussianHMM",
    "models.gaussian_mixture": "GaussianMixture",
    "models.hidden_markov": "HiddenMarkov",
    "models.hierarchical_vae": "HierarchicalVAE",
    "models.mixture_of_pca": "MixtureOfPCA",
    "models.probabilistic_pca": "ProbabilisticPCA",
    "models.vae": "VAE",
    "models.vamp_prior": "VampPrior",
}


@pytest.mark.parametrize("address", MODULES)
def test_an_old_address_leads_to_its_names(address: str) -> None:
    name = f"ppl_vae.{address}"
    sys.modules.pop(name, None)
    with pytest.warns(DeprecationWarning, match=f"{name} has moved: import its names from ppl_vae"):
        module = importlib.import_module(name)
    for offered in OFFERED[address].split():
        assert getattr(module, offered) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        module.no_such_name  # noqa: B018


@pytest.mark.parametrize(
    ("package", "name"),
    [(package, name) for package in OF_PACKAGES for name in OF_PACKAGES[package]],
)
def test_a_package_still_offers_an_old_name(package: str, name: str) -> None:
    module = importlib.import_module(package)
    with pytest.warns(DeprecationWarning, match=f"{package}.{name} is ppl_vae"):
        found = getattr(module, name)
    assert found.__name__ == OF_PACKAGES[package][name].rpartition(".")[2]
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
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert import_by_name(name) is now


def test_so_is_one_inside_of_the_arguments() -> None:
    prior = {"class_path": "ppl_vae.models.vamp_prior.VampPrior", "init_args": {"components": 3}}
    sizes = {"data_shape": [3], "latent_dim": 2}
    spec = {"class_path": "ppl_vae.models.vae.VAE", "init_args": {**sizes, "prior": prior}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, full = build(spec)
    assert full["init_args"]["prior"]["class_path"] == "ppl_vae.models.VampPrior"


def test_a_module_of_the_user_s_own_is_not_one_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be called as one of ours was, below `ppl_vae`, and offer the same names."""
    monkeypatch.syspath_prepend(tmp_path)
    for address, offered in OFFERED.items():
        file = tmp_path.joinpath(*address.split(".")).with_suffix(".py")
        file.parent.mkdir(exist_ok=True)
        (file.parent / "__init__.py").touch()
        names = offered.split()
        file.write_text("".join(f"class {name}: pass\n" for name in names))
        for part in {address.partition(".")[0], address}:
            monkeypatch.delitem(sys.modules, part, raising=False)
        importlib.invalidate_caches()
        for name in names:
            assert import_by_name(f"{address}.{name}").__module__ == address
            written = {"class_path": f"{address}.{name}"}
            assert with_names_of_today(written) == written
        sys.modules.pop(address)


@pytest.mark.parametrize("name", ["check", "refit_prior"])
def test_no_module_shadows_a_function(name: str) -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(f"ppl_vae.{name}")
    assert callable(getattr(ppl_vae, name))
