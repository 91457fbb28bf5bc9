"""Diagnosis of a pair: used latent dimensions, inference gaps, and the exact posterior on a grid."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
