"""A probabilistic-programming laboratory for variational autoencoders on Pyro.

``fit``, ``evaluate``, ``diagnose`` and ``check`` take any Pyro model/guide pair; ``load_data`` loads data,
``save_run`` and ``load_run`` keep runs on disk, ``to_arviz`` hands results to ArviZ.
"""

from __future__ import annotations

from ppl_vae._version import __version__
from ppl_vae.arviz_bridge import to_arviz
from ppl_vae.check import check
from ppl_vae.data import load_data
from ppl_vae.diagnosis import diagnose
from ppl_vae.evaluation import evaluate
from ppl_vae.fitting import fit
from ppl_vae.runs import load_run, save_run

__all__ = [
    "__version__",
    "check",
    "diagnose",
    "evaluate",
    "fit",
    "load_data",
    "load_run",
    "save_run",
    "to_arviz",
]
