"""Runs on disk: folders, pairs rebuilt from their descriptions, weights, and comparisons of runs."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
