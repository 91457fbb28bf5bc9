"""The subcommand `train`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser, Namespace

from ppl_vae.cli.common import (
    check_setup,
    new_folder,
    say,
    say_trained,
    with_rows,
)
from ppl_vae.cli.options import UsageError
from ppl_vae.cli.report import dequantization_note, result_table
from ppl_vae.cli.setup import Setup, set_up, with_defaults
from ppl_vae.diagnosis import diagnose as diagnose_pair
from ppl_vae.evaluation import Generator, evaluate as evaluate_pair, to_arviz
from ppl_vae.pairs import Pair, Program
from ppl_vae.plots import draw_run
from ppl_vae.runs import (
    CHECKPOINTS,
    PLOTS,
    POSTERIOR,
    discard_folder,
    prepare_folder,
    read_config,
    write_config,
    write_results,
    write_weights,
)
from ppl_vae.runtime import make_fabric, resolve_device
from ppl_vae.training import fit

MOST_PICTURED = 1000  # test rows at most that go into pictures


def train(parser: ArgumentParser, given: Namespace) -> int:
    """Trains, evaluates, diagnoses, saves and draws."""
    resumed = given.get("resume")
    if resumed is not None:
        options, folder = _options_of_run(parser, given), Path(resumed)
    else:
        options = with_defaults(parser, given)
    if not given.get("print_config"):  # what is wrong at once is said before the data are read
        resolve_device(options["device"])
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
    choices = ("device", "precision", "num_processes", "num_nodes")
    fabric = make_fabric(**{name: setup.fit_options.pop(name) for name in choices})
    folder = Path(fabric.broadcast(str(folder)))  # its name holds the time
    if fabric.is_global_zero:
        if resumed is None:
            prepare_folder(folder, overwrite=bool(given.get("overwrite")))
        write_config(folder, setup.config)
        say(f"{setup.data!r}\nrun folder: {folder}")
    progress = False if given.get("quiet") else None
    try:
        fitted = fit(
            setup.model,
            setup.guide,
            setup.data.train,
            objective=setup.objective,
            validation=setup.data.validation,
            transform=setup.data.transform,
            seed=setup.config["seed"],
            fabric=fabric,
            run_dir=folder,
            resume=any((folder / CHECKPOINTS).glob("step-*")),
            progress=progress,
            **setup.fit_options,
        )
        if not fabric.is_global_zero:
            return 0
        say_trained(fitted)
        write_weights(folder, fitted.model, fitted.guide)
        report_run(folder, setup, fitted.model, fitted.guide, fitted.history, progress)
    except KeyboardInterrupt:
        print(f"\ncontinue with: ppl-vae train --resume {folder}", file=sys.stderr)
        raise
    except BaseException:
        if fabric.is_global_zero and not any((folder / CHECKPOINTS).glob("step-*")):
            discard_folder(folder)  # it never began
        raise
    return 0


def report_run(
    folder: Path,
    setup: Setup,
    model: Program,
    guide: Program,
    history: list[dict[str, float]],
    progress: bool | None,
) -> None:
    """Everything after the training."""
    data, seed = setup.data, setup.config["seed"]
    evaluation = evaluate_pair(
        model,
        guide,
        data.test,
        num_samples=setup.config["num_samples"],
        seed=seed,
        progress=progress,
    )
    beta = setup.objective.beta_at(len(history))
    diagnosis = diagnose_pair(model, guide, data.test, beta=beta, seed=seed, progress=progress)
    say(f"writing {POSTERIOR} for ArviZ")
    arviz = to_arviz(model, guide, data.test, evaluation=evaluation, seed=seed)
    write_results(folder, evaluation=with_rows(evaluation, data), diagnosis=diagnosis, arviz=arviz)
    Pair.of(model, guide).to(torch.device("cpu"))
    labels = None if data.test_labels is None else data.test_labels[:MOST_PICTURED]
    generator = Generator(model, guide, data.test[:MOST_PICTURED], seed)
    failed = draw_run(folder / PLOTS, generator, history, evaluation, diagnosis, labels)
    print(result_table(evaluation, diagnosis) + dequantization_note(evaluation, data))
    print(f"\n{diagnosis.summary()}")
    print(f"\nrun folder: {folder}\npictures:   {folder / PLOTS}")
    for line in failed:
        print(f"ppl-vae: warning: {line}", file=sys.stderr)


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
