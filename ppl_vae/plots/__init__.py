"""Pictures of pairs, runs and comparisons: arrays or results in, a matplotlib `Figure` out.

Nothing here touches pyplot, so a figure belongs to its caller and no window opens. Save one with
`figure.savefig("name.png")`. Type sizes are chosen to be legible on a thumbnail 300 pixels wide,
and the colors are those of Okabe and Ito, which color-blind readers can distinguish.

Data whose rows have the shape `(height, width)`, `(1, height, width)` or `(3, height, width)` are
shown as pictures, all others as lines or heat maps over their flattened entries.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
