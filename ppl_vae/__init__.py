"""A probabilistic-programming laboratory for variational autoencoders on Pyro.

Each function takes any Pyro model/guide pair:

- `check`, `fit`: check and train a pair; `fit_em`: EM for models with closed forms;
- `evaluate`, `annealed_importance_sampling`, `bidirectional_monte_carlo`: the bound next to log p(x);
- `inference_gaps`, `diagnose`: where the bound is loose, and why a posterior collapsed;
- `classification_accuracy_score`: whether generated rows teach a classifier what real rows do;
- `refit_guide`, `refit_prior`: another guide or prior for a model that is kept;
- `load_data`, `save_run`, `load_run`, `to_arviz`: data, runs on disk, ArviZ.

The packages below are attributes, too: after `import ppl_vae`, `ppl_vae.objectives.ELBO` is there.
"""

from __future__ import annotations

import lazy_loader

from ppl_vae._moved import install as install_old_addresses

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

install_old_addresses()
