"""The subcommand `refit`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace

from ppl_vae.cli.finish import finish_run
from ppl_vae.cli.mistakes import UsageError
from ppl_vae.cli.own_modules import trust_of
from ppl_vae.cli.reached import with_beta_held
from ppl_vae.cli.setup import checked, set_up
from ppl_vae.cli.stages import Stages
from ppl_vae.cli.start import check_setup, options_of, require_apart, started, step_size_of
from ppl_vae.pairs import Program, keep_guide
from ppl_vae.runs import Trust, load_run, require_free, write_weights
from ppl_vae.runtime import as_folder, resolve_device
from ppl_vae.training import Processes, refit_guide, require_noise


def refit(parser: ArgumentParser, given: Namespace) -> int:
    """Trains a new guide for the model of a run, of which the noise alone may change; the result is a run."""
    resumed, run = given.get("resume"), given.get("run")
    stages = Stages(bool(given.get("quiet")))
    if (resumed is None) == (run is None):
        raise UsageError(
            "name the RUN whose model is kept, or --resume RUN to continue an interrupted refit"
        )
    typed, of_run = options_of("refit", parser, given)
    if resumed is None:
        model, config, of_run = _options_for(typed, given, Path(run))
    else:
        model, config = _model_of(Path(resumed), Path(typed.get("refit_of", resumed)), given), typed
    resolve_device(config["device"])
    with stages.stage("data and pair", told=False):
        setup = set_up(config, model=model, trust=of_run)
    if config.get("fit_noise"):
        try:
            require_noise(setup.model, config.get("max_epochs"))
        except (TypeError, ValueError) as error:
            raise UsageError(f"--{error}") from error
    with stages.stage("checks", told=False):
        check_setup(setup)
    fabric = setup.fabric()
    processes = Processes(fabric)
    progress = False if given.get("quiet") else None
    with started("refit", setup, given, processes) as (folder, resume):
        with processes.ending_together():
            if processes.is_first and not resume:  # checkpoints hold the guide alone
                write_weights(folder.path, setup.model, setup.guide, epochs=0)
        with stages.stage("training", told=False):  # the end is told in other words
            fitted = setup.train(
                refit_guide,
                fit_noise=bool(config.get("fit_noise")),
                fabric=fabric,
                run_dir=folder,
                resume=resume,
                progress=progress,
            )
        if processes.is_first:
            folder.begin()  # a finished run has taken no steps: its new options are written here
            finish_run(folder, setup, fitted, given, stages)
    return 0


def _options_for(
    options: dict[str, Any], given: Namespace, source: Path
) -> tuple[Program, dict[str, Any], dict[str, Trust]]:
    """The model of a run, the options of the refit, and the trust in those that are the run's."""
    target = given.get("run_dir")
    if target is not None:
        require_apart(Path(target), source)
        require_free(as_folder(target, "run_dir"), overwrite=bool(given.get("overwrite")))
    trust = trust_of(given, source)
    run = load_run(source, trust=trust, results=False)
    if not isinstance(run.model, torch.nn.Module):
        raise UsageError(
            "refit needs a model that is an nn.Module, so that the new run can hold it"
        )
    left_out = (
        *("guide", "fit_noise", "versions", "refit_of"),
        *("made_by", "start_from", "start_parts"),
    )
    kept = {n: v for n, v in checked(source, run.config).items() if n not in left_out}
    if keep_guide(run.model):  # a VampPrior is made of the guide that it was trained with
        kept.setdefault("model_guide", run.config["guide"])
    chosen = {name: options[name] for name in vars(given) if name in options}
    if "objective" not in chosen:
        kept["objective"] = with_beta_held(kept.get("objective"), run, trust)
    if "learning_rate" in chosen and step_size_of(kept.get("optimizer")) is not None:
        arguments = {n: v for n, v in kept["optimizer"]["init_args"].items() if n != "lr"}
        kept["optimizer"] = {
            **kept["optimizer"],
            "init_args": arguments,
        }  # the typed step size replaces it
    if step_size_of(chosen.get("optimizer")) is not None:
        kept.pop("learning_rate", None)
    config = {**options, **kept, **chosen, "refit_of": str(source.resolve())}
    config.pop("run", None)
    return run.model, config, {name: trust for name in kept if name not in chosen}


def _model_of(path: Path, source: Path, given: Namespace) -> Program:
    """The model of a refit that is to go on: from its own weights, else from the run that it was begun with."""
    try:
        return load_run(path, trust=trust_of(given, path), results=False).model
    except FileNotFoundError:  # interrupted before anything was written
        return load_run(source, trust=trust_of(given, source), results=False).model
