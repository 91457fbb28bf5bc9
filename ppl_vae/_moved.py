"""Addresses of the flat layout before rooms: imports of them, and class paths in older runs, still work.

Each address leads to the package that offers the same names today. New code imports from that package.
"""

from __future__ import annotations

import importlib
import sys
import types
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any

PACKAGES = {
    "ais": "evaluation",
    "arviz_bridge": "evaluation",
    "batches": "pairs",
    "em_plots": "plots",
    "fitting": "training",
    "flows": "distributions",
    "gaps": "diagnosis",
    "gumbel": "objectives",
    "handlers": "pairs",
    "layout": "pairs",
    "linear_gaussian": "models.linear.linear_gaussian",
    "markov_chain": "distributions",
    "posterior_grid": "diagnosis",
    "posterior_plots": "plots",
    "refitting": "training",
    "reports": "evaluation",
    "rows": "pairs",
    "sandwich": "evaluation",
    "schedules": "objectives",
    **dict.fromkeys(
        (
            *("models.autoregressive", "models.bernoulli_mixture", "models.categorical_hmm"),
            *("models.ctc", "models.factor_analysis", "models.flow_prior", "models.gaussian_hmm"),
            *("models.gaussian_mixture", "models.hidden_markov", "models.hierarchical_vae"),
            *("models.mixture_of_pca", "models.probabilistic_pca", "models.vae"),
            "models.vamp_prior",
        ),
        "models",
    ),
    "guides.semi_amortised": "guides",
}
"""Below `ppl_vae`: where a module was, and which package offers its names now."""

NAMES = {"SemiAmortised": "SemiAmortized", "climb": "bound_curves", "survey": "find_layout"}
"""Names that have changed since."""


class _Forwarding(Loader):
    """Makes a module that looks its names up in a package."""

    def __init__(self, package: str) -> None:
        self.package = package

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        warnings.warn(
            f"{module.__name__} has moved: import its names from {self.package}",
            DeprecationWarning,
            stacklevel=2,
        )

        def look_up(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(f"module '{module.__name__}' has no attribute '{name}'")
            return getattr(importlib.import_module(self.package), NAMES.get(name, name))

        module.__getattr__ = look_up  # type: ignore[method-assign]


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        package = PACKAGES.get(fullname.removeprefix("ppl_vae."))
        if package is None or not fullname.startswith("ppl_vae."):
            return None
        return ModuleSpec(fullname, _Forwarding(f"ppl_vae.{package}"))


def install() -> None:
    """Lets `import` find the old addresses, after everything that is really there."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
