"""A probabilistic-programming laboratory for variational autoencoders on Pyro.

Each function takes any Pyro model/guide pair:

- ``check``, ``fit``: look at a pair, train it; ``fit_em``: EM for models with closed forms;
- ``evaluate``, ``annealed_importance_sampling``, ``bidirectional_monte_carlo``: the bound beside log p(x);
- ``inference_gaps``, ``diagnose``: where the bound is lost, and why a posterior collapsed;
- ``refit_guide``, ``refit_prior``: another guide or prior for a model that stays;
- ``load_data``, ``save_run``, ``load_run``, ``to_arviz``: data, runs on disk, ArviZ.
"""

from __future__ import annotations

from ppl_vae._version import __version__
from ppl_vae.ais import annealed_importance_sampling
from ppl_vae.arviz_bridge import to_arviz
from ppl_vae.check import check
from ppl_vae.data import load_data
from ppl_vae.diagnosis import diagnose
from ppl_vae.em import fit_em
from ppl_vae.evaluation import evaluate
from ppl_vae.fitting import fit
from ppl_vae.gaps import inference_gaps
from ppl_vae.refit_prior import refit_prior
from ppl_vae.refitting import refit_guide
from ppl_vae.runs import load_run, save_run
from ppl_vae.sandwich import bidirectional_monte_carlo

__all__ = [
    "__version__",
    "annealed_importance_sampling",
    "bidirectional_monte_carlo",
    "check",
    "diagnose",
    "evaluate",
    "fit",
    "fit_em",
    "inference_gaps",
    "load_data",
    "load_run",
    "refit_guide",
    "refit_prior",
    "save_run",
    "to_arviz",
]
