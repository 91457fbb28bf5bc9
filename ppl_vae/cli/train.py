"""The subcommand `train`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import yaml
from jsonargparse import ArgumentParser, Namespace

from ppl_vae.cli.finish import finish_run
from ppl_vae.cli.output import say, show, warn
from ppl_vae.cli.setup import Setup, set_up
from ppl_vae.cli.stages import Stages
from ppl_vae.cli.start import check_setup, has_checkpoints, options_of, started
from ppl_vae.cli.start_from import StartFrom, random_judge
from ppl_vae.runs import RunFolder, require_free
from ppl_vae.runtime import as_folder, resolve_device
from ppl_vae.training import Fit, Processes, fit


def train(parser: ArgumentParser, given: Namespace) -> int:
    """Trains, evaluates, diagnoses, saves and draws."""
    return trained("train", parser, given, finish_run)


def trained(
    command: str,
    parser: ArgumentParser,
    given: Namespace,
    finish: Callable[[RunFolder, Setup, Fit, Namespace, Stages], None],
    prepare: Callable[[Setup], None] | None = None,
) -> int:
    """Trains a pair in a run folder.

    Args:
        command: The command that does.
        parser: Its parser.
        given: What was typed.
        finish: What follows the training.
        prepare: What is done with the new pair before the training.
    """
    resumed = given.get("resume")
    stages = Stages(bool(given.get("quiet")))
    options, trust = options_of(command, parser, given)
    goes_on = resumed is not None and has_checkpoints(Path(resumed))
    start = None if goes_on else StartFrom.of(options)
    if start is not None:  # as the run of a refit, so that the new one can be repeated elsewhere
        options["start_from"] = str(start.run.resolve())
    if not given.get("print_config"):  # report what can be checked before the data are read
        resolve_device(options["device"])
        if resumed is None and given.get("run_dir") is not None:
            target = as_folder(given.run_dir, "run_dir")
            if start is not None:
                start.require_kept(given.run_dir)
            require_free(target, overwrite=bool(given.get("overwrite")))
    with stages.stage("data and pair", told=False):
        setup = set_up(options, trust=trust)
    if given.get("print_config"):
        show(yaml.safe_dump(setup.config, sort_keys=False), end="")
        return 0
    if prepare is not None:
        with stages.stage("start", told=False):
            prepare(setup)
    with stages.stage("checks", told=False):
        check_setup(setup)
    taken: list[str] = []
    if start is not None:
        with stages.stage("start", told=False):
            setup, taken = start.load(setup)
    fabric = setup.fabric()
    processes = Processes(fabric)
    progress = False if given.get("quiet") else None
    with started(command, setup, given, processes) as (folder, resume):
        if processes.is_first and start is not None:
            say(f"starting from {start.run}: {'; '.join(taken)}")
        if processes.is_first and not goes_on and (wrong := random_judge(setup, start)):
            warn(wrong)
        with stages.stage("training", told=False):  # the end is told in other words
            fitted = setup.train(
                fit, fabric=fabric, run_dir=folder, resume=resume, progress=progress
            )
        if processes.is_first:
            folder.begin()  # a finished run has taken no steps: its new options are written here
            finish(folder, setup, fitted, given, stages)
    return 0
