"""log p(x) and its bounds, row by row: by importance sampling, by annealing, for ArviZ."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
