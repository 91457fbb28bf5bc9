"""Training by SVI: `fit`; and, for a trained model, a new guide or prior: `refit_guide`, `refit_prior`."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
