"""Pairs of a model and a guide: two Pyro programs, their parameters, traces and per-row densities."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
