"""A run on disk: its folder, how its pair is built again, its weights, and how runs compare."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
