"""Training by SVI: `fit`; and, for a trained model, a new guide or prior: `refit_guide`, `refit_prior`."""

from __future__ import annotations

import lazy_loader

from ppl_vae._moved import with_old_names

_offers, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__getattr__ = with_old_names(_offers, __name__)
