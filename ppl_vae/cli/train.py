"""The subcommand `train`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from ppl_vae.cli.common import say
from ppl_vae.cli.finish import finish_run
from ppl_vae.cli.mistakes import UsageError
from ppl_vae.cli.setup import set_up, with_defaults
from ppl_vae.cli.start import check_setup, new_folder
from ppl_vae.runs import CHECKPOINTS, discard_folder, prepare_folder, read_config, write_config
from ppl_vae.runtime import require_samples, resolve_device
from ppl_vae.training import fit


def train(parser: ArgumentParser, given: Namespace) -> int:
    """Trains, evaluates, diagnoses, saves and draws."""
    resumed = given.get("resume")
    if resumed is not None:
        options, folder = _options_of_run(parser, given), Path(resumed)
    else:
        options = with_defaults(parser, given)
    if not given.get("print_config"):  # report what can be checked before the data are read
        resolve_device(options["device"])
        require_samples("num_samples", options["num_samples"])
        if resumed is None and given.get("run_dir"):
            folder = Path(given.run_dir)
            prepare_folder(folder, overwrite=bool(given.get("overwrite")), dry_run=True)
    setup = set_up(options)
    if given.get("print_config"):
        print(yaml.safe_dump(setup.config, sort_keys=False), end="")
        return 0
    if resumed is None:
        folder = Path(given.get("run_dir") or new_folder(setup.config))
        check_setup(setup)  # before anything is written, and anything overwritten
    fabric = setup.fabric()
    folder = Path(fabric.broadcast(str(folder)))  # the name contains the time
    if fabric.is_global_zero:
        if resumed is None:
            prepare_folder(folder, overwrite=bool(given.get("overwrite")))
        write_config(folder, setup.config)
        say(f"{setup.data!r}\nrun folder: {folder}")
    progress = False if given.get("quiet") else None
    try:
        resume = any((folder / CHECKPOINTS).glob("step-*"))
        fitted = setup.train(fit, fabric=fabric, run_dir=folder, resume=resume, progress=progress)
        if not fabric.is_global_zero:
            return 0
        finish_run(folder, setup, fitted, progress)
    except KeyboardInterrupt:
        print(f"\ncontinue with: ppl-vae train --resume {folder}", file=sys.stderr)
        raise
    except BaseException:
        if fabric.is_global_zero and not any((folder / CHECKPOINTS).glob("step-*")):
            discard_folder(folder)  # the training never started
        raise
    return 0


def _options_of_run(parser: ArgumentParser, given: Namespace) -> dict[str, Any]:
    """The options that a run was started with."""
    changed = set(vars(given)) - {"resume", "max_epochs", "quiet", "debug"}
    if changed:
        names = ", ".join(f"--{name}" for name in sorted(changed))
        raise UsageError(
            f"--resume continues the run as it was started: leave out {names} (only --max_epochs may change)"
        )
    path = Path(given.resume)
    config = read_config(path)
    config.pop("versions", None)
    if "refit_of" in config:
        raise UsageError(
            f"{path} was made by `ppl-vae refit`, which trains the guide alone: run that again with "
            "--overwrite"
        )
    config |= {"max_epochs": given.max_epochs} if "max_epochs" in given else {}
    return config
