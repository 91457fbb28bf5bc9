"""Checks of a pair and its data, and the session in which a checked pair is evaluated."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
