"""log p(x) of each row and its bounds, by importance sampling and by annealing; export to ArviZ."""

from __future__ import annotations

import lazy_loader

from ppl_vae._moved import with_old_names

_offers, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__getattr__ = with_old_names(_offers, __name__)
