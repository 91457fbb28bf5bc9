"""A probabilistic-programming laboratory for variational autoencoders on Pyro.

``fit``, ``evaluate``, ``diagnose`` and ``check`` take any Pyro model/guide pair; ``load_data`` loads data,
``save_run`` and ``load_run`` keep runs on disk, ``to_arviz`` hands results to ArviZ.
"""

from __future__ import annotations

from ppl_vae._version import __version__
from ppl_vae.evaluation import evaluate

__all__ = ["__version__", "evaluate"]
