"""`html_report`: the page of a run or of a sweep."""

from __future__ import annotations

import os
from pathlib import Path

from ppl_vae._version import __version__
from ppl_vae.reporting.of_run import run_page
from ppl_vae.reporting.of_sweep import sweep_page
from ppl_vae.runtime import described
from ppl_vae.sweeps import SPEC


def html_report(path: str | Path) -> str:
    """One page of HTML about a run or a sweep, with all that it shows inside: it loads nothing.

    What was found is read from the folder, and nothing is computed anew. What is missing, damaged, or belongs
    to other weights is left out, and the page says so, with the command that adds it. Nothing that the folder
    names is imported.

    Args:
        path: The folder of a run, or that of a sweep.

    Returns:
        The page. The one of a run has no script. In that of a sweep the rate-distortion plane is drawn by
        Vega-Lite, which is inside, too.

    Raises:
        FileNotFoundError: No such folder, or neither a run nor a sweep in it.
        NotADirectoryError: It is a file.
        CorruptFileError: The config.yaml of the run is damaged.
        SpecError: The description of the sweep cannot be read.
        ReportExtraError: It is a sweep, and `ppl_vae[sweep]` is not installed.

    Example:
        >>> import tempfile
        >>> from ppl_vae import save_run
        >>> from ppl_vae.guides import MeanField
        >>> from ppl_vae.models import VAE
        >>> folder = f"{tempfile.mkdtemp()}/first"
        >>> save_run(folder, VAE((3,), latent_dim=2), MeanField((3,), latent_dim=2))
        >>> page = html_report(folder)
        >>> page.count("<title>first</title>"), "https://" in page
        (1, False)
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"html_report takes the path of a folder, got {described(path)}")
    if os.fspath(path) == "":
        raise ValueError("the path of the run is empty: give its folder")
    path = Path(path)
    page = sweep_page if (path / SPEC).is_file() else run_page
    return page(path, __version__)
