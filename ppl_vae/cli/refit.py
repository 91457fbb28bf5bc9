"""The subcommand `refit`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace

from ppl_vae.cli.finish import finish_run
from ppl_vae.cli.mistakes import UsageError
from ppl_vae.cli.setup import checked, set_up, with_defaults
from ppl_vae.cli.start import check_setup, new_folder, options_of_run, started
from ppl_vae.pairs import Program, keep_guide
from ppl_vae.runs import load_run, require_free, write_weights
from ppl_vae.runtime import resolve_device
from ppl_vae.training import refit_guide


def refit(parser: ArgumentParser, given: Namespace) -> int:
    """Trains a new guide for the model of a run, which is left as it is; the result is a run of its own."""
    resumed, run = given.get("resume"), given.get("run")
    if (resumed is None) == (run is None):
        raise UsageError(
            "name the RUN whose model is kept, or --resume RUN to continue an interrupted refit"
        )
    if resumed is None:
        model, config = _options_for(parser, given, Path(run))
    else:
        config = options_of_run("refit", given)
        model = _model_of(Path(resumed), Path(config["refit_of"]))
    resolve_device(config["device"])
    setup = set_up(config, model=model)
    path = Path(resumed or given.get("run_dir") or new_folder(setup.config))
    check_setup(setup)
    fabric = setup.fabric()
    path = Path(fabric.broadcast(str(path)))
    progress = False if given.get("quiet") else None
    with started("refit", setup, given, path, fabric.is_global_zero) as (folder, resume):
        if fabric.is_global_zero and not resume:
            write_weights(folder.path, setup.model, setup.guide)  # checkpoints hold the guide alone
        fitted = setup.train(
            refit_guide, fabric=fabric, run_dir=folder, resume=resume, progress=progress
        )
        if fabric.is_global_zero:
            finish_run(folder.path, setup, fitted, progress)
    return 0


def _options_for(
    parser: ArgumentParser, given: Namespace, source: Path
) -> tuple[Program, dict[str, Any]]:
    """The model of a run, and the options with which a guide is trained for it."""
    target = given.get("run_dir")
    if target is not None and Path(target).resolve() == source.resolve():
        raise UsageError(
            f"--run_dir {target} is the run whose model is kept, and would be lost: choose another folder"
        )
    if target is not None:
        require_free(Path(target), overwrite=bool(given.get("overwrite")))
    run = load_run(source, results=False)
    if not isinstance(run.model, torch.nn.Module):
        raise UsageError(
            "refit needs a model that is an nn.Module, so that the new run can hold it"
        )
    left_out = ("guide", "versions", "refit_of", "made_by")
    kept = {n: v for n, v in checked(source, run.config).items() if n not in left_out}
    if keep_guide(run.model):  # a VampPrior is made of the guide that it was trained with
        kept.setdefault("model_guide", run.config["guide"])
    options = with_defaults(parser, given)
    chosen = {name: options[name] for name in vars(given) if name in options}
    config = {**options, **kept, **chosen, "refit_of": str(source.resolve())}
    config.pop("run", None)
    return run.model, config


def _model_of(path: Path, source: Path) -> Program:
    """The model of a refit that is to go on: from its own weights, else from the run that it was begun with."""
    try:
        return load_run(path, results=False).model
    except FileNotFoundError:  # interrupted before anything was written
        return load_run(source, results=False).model
