"""Old addresses: imports of names from where they once stood, and class paths in older runs, still work.

An old address leads to where the same names are now, with a `DeprecationWarning`. New code imports from there.
"""

from __future__ import annotations

import importlib
import sys
import types
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any

MODULES: dict[str, tuple[str, ...]] = {
    "ais": ("evaluation",),
    "arviz_bridge": ("evaluation",),
    "batches": ("pairs", "runtime"),
    "checkpoints": ("runs", "runtime"),
    "em_loop": ("em",),
    "em_plots": ("plots",),
    "em_steps": ("em", "em.steps"),
    "fitting": ("training", "runtime"),
    "flows": ("distributions",),
    "gaps": ("diagnosis",),
    "gumbel": ("objectives",),
    "handlers": ("pairs",),
    "layout": ("pairs",),
    "linear_gaussian": ("models.linear.linear_gaussian",),
    "markov_chain": ("distributions",),
    "mean_field": ("pairs",),
    "posterior_grid": ("diagnosis",),
    "posterior_plots": ("plots",),
    "problems": ("checks",),
    "recording": ("capture",),
    "refinement": ("diagnosis.refinement",),
    "refitting": ("training",),
    "reports": ("runs",),
    "row_families": ("diagnosis.families",),
    "rows": ("pairs",),
    "sandwich": ("evaluation",),
    "schedules": ("objectives",),
    "guides.semi_amortised": ("guides",),
    "models.autoregressive": ("models.deep.autoregressive",),
    "models.bernoulli_mixture": ("models.mixtures.bernoulli_mixture",),
    "models.categorical_hmm": ("models.sequences.categorical_hmm",),
    "models.ctc": ("models.sequences.ctc",),
    "models.factor_analysis": ("models.linear.factor_analysis",),
    "models.flow_prior": ("models.priors.flow",),
    "models.gaussian_hmm": ("models.sequences.gaussian_hmm",),
    "models.gaussian_mixture": ("models.mixtures.gaussian_mixture",),
    "models.hidden_markov": ("models.sequences.hidden_markov",),
    "models.hierarchical_vae": ("models.deep.hierarchical_vae",),
    "models.mixture_of_pca": ("models.mixtures.mixture_of_pca",),
    "models.probabilistic_pca": ("models.linear.probabilistic_pca",),
    "models.vae": ("models.deep.vae",),
    "models.vamp_prior": ("models.priors.vamp",),
}
"""Below `ppl_vae`: where a module was, and the modules that offer its names now."""

NAMES = {
    "SemiAmortised": "SemiAmortized",
    "climb": "bound_curves",
    "maximise": "maximize",
    "survey": "find_layout",
}
"""Names that have changed since."""

OF_PACKAGES = {
    "ppl_vae.guides": {"SemiAmortised": "ppl_vae.guides.SemiAmortized"},
    "ppl_vae.evaluation": {
        "Estimate": "ppl_vae.stats.Estimate",
        "evaluating": "ppl_vae.checks.evaluating",
    },
    "ppl_vae.training": {
        "load_checkpoint": "ppl_vae.runs.load_checkpoint",
        "save_checkpoint": "ppl_vae.runs.save_checkpoint",
    },
}
"""For each package that was there before: names that it offered, and what they are today."""


def find(module: str, name: str) -> Any:
    """What an older version offered under a name; None if the name is not an old one.

    Args:
        module: Full name of a module or package.
        name: A name in it.
    """
    moved = OF_PACKAGES.get(module, {}).get(name)
    if moved is not None:
        return _get(moved)
    of_ours = module.startswith("ppl_vae.")  # others may be called `schedules`, too
    for place in MODULES.get(module.removeprefix("ppl_vae."), ()) if of_ours else ():
        found = getattr(importlib.import_module(f"ppl_vae.{place}"), NAMES.get(name, name), None)
        if found is not None:
            return found
    return None


def with_old_names(offers: Callable[[str], Any], package: str) -> Callable[[str], Any]:
    """A package's `__getattr__` that also finds the names which the package offered before.

    Args:
        offers: The package's own `__getattr__`.
        package: Its full name.
    """
    moved = OF_PACKAGES[package]

    def look_up(name: str) -> Any:
        if name not in moved:
            return offers(name)
        _warn(f"{package}.{name}", f"is {moved[name]} now")
        return _get(moved[name])

    return look_up


def _get(full_name: str) -> Any:
    module, _, name = full_name.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _warn(old: str, what: str) -> None:
    warnings.warn(f"{old} {what}", DeprecationWarning, stacklevel=3)


class _Forwarding(Loader):
    """Makes a module that looks its names up where they are now."""

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        old = module.__name__
        places = MODULES[old.removeprefix("ppl_vae.")]
        _warn(
            old, "has moved: import its names from " + " or ".join(f"ppl_vae.{p}" for p in places)
        )

        def look_up(name: str) -> Any:
            found = None if name.startswith("__") else find(old, name)
            if found is None:
                raise AttributeError(f"module '{old}' has no attribute '{name}'")
            return found

        module.__getattr__ = look_up  # type: ignore[method-assign]


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        known = fullname.startswith("ppl_vae.") and fullname.removeprefix("ppl_vae.") in MODULES
        return ModuleSpec(fullname, _Forwarding()) if known else None


def install() -> None:
    """Lets `import` find the old modules, after everything that is really there."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
