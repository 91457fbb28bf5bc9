"""What is wrong with a pair or its data, and a checked pair opened for evaluation."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
