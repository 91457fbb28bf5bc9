"""Whole numbers in files: each costs as many bits as its probability says. It knows no models."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
