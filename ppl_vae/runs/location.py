"""Where a run's configuration is. In a file of its own, because it is needed without torch."""

from __future__ import annotations

from pathlib import Path

CONFIG = "config.yaml"


def config_file(path: Path) -> Path:
    """The configuration file of a run folder.

    Raises:
        FileNotFoundError: There is no such folder, or no run in it.
    """
    if not path.is_dir():
        raise FileNotFoundError(
            f"there is no run folder {path}: check the path (`ppl-vae train` makes runs below runs/)"
        )
    file = path / CONFIG
    if not file.is_file():
        raise FileNotFoundError(f"{path} is not a run: it holds no {CONFIG}; check the path")
    return file
