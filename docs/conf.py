"""How the site is built: `python -m sphinx -W --keep-going docs site`."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "docs" / "_extensions"))

import ppl_vae  # noqa: E402

project = "ppl_vae"
author = "the ppl_vae contributors"
copyright = "the ppl_vae contributors"
version = release = ppl_vae.__version__

extensions = [
    "myst_parser",
    "docstrings",
    "mathml",
    "run_pages",
    "breaks",
    "links",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_*"]
needs_sphinx = "8.0"

# -- Markdown ---------------------------------------------------------------------------------------------

myst_enable_extensions = ["colon_fence", "dollarmath", "fieldlist"]
myst_heading_anchors = 3

# -- the reference ----------------------------------------------------------------------------------------

python_use_unqualified_type_names = True
python_maximum_signature_line_length = 70
toc_object_entries_show_parents = "hide"

# -- pages ------------------------------------------------------------------------------------------------

html_theme = "furo"
html_title = "ppl_vae"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/icon.svg"
html_math_renderer = "mathml"
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}
html_permalinks_icon = "#"
pygments_style = "friendly"
pygments_dark_style = "monokai"
suppress_warnings = ["myst.strikethrough"]
