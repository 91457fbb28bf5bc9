"""The start of a training: the pair is checked, the run folder made."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from ppl_vae.checks import check
from ppl_vae.cli.common import say
from ppl_vae.cli.setup import Setup
from ppl_vae.runs import prepare_folder, write_config


def check_setup(setup: Setup) -> None:
    """Raises an error for a pair that cannot be trained; `fit` will issue the warnings."""
    x = setup.data.train[: setup.config.get("batch_size") or 128]
    report = check(
        setup.model,
        setup.guide,
        x if setup.data.transform is None else setup.data.transform(x),
        objective=setup.objective,
        max_epochs=setup.config.get("max_epochs", 1),
    )
    report.raise_errors()


def new_folder(config: Mapping[str, Any]) -> Path:
    """A folder below runs/ that is not there yet."""
    data = Path(str(config["data"]).removeprefix("folder:")).stem
    names = [config[role]["class_path"].rpartition(".")[2] for role in ("model", "guide")]
    stem = "-".join([data, *names, time.strftime("%Y%m%d-%H%M%S")])
    folder, number = Path("runs") / stem, 1
    while folder.exists():
        number += 1
        folder = Path("runs") / f"{stem}-{number}"
    return folder


def start_run(setup: Setup, given: Namespace) -> Path:
    """Checks the pair, makes the run folder and writes the configuration there."""
    folder = Path(given.get("run_dir") or new_folder(setup.config))
    check_setup(setup)
    prepare_folder(folder, overwrite=bool(given.get("overwrite")))
    write_config(folder, setup.config)
    say(f"{setup.data!r}\nrun folder: {folder}")
    return folder
