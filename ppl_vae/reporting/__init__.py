"""Pages about runs and sweeps: one file of HTML, with all that it shows inside, for a browser offline.

`html_report` reads what is in a folder and computes nothing anew. Texts of a folder (names, options, messages)
are escaped, and the page may load nothing: a run of a stranger can be reported on.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
