"""The end of a training: the pair is evaluated and diagnosed; results are saved, drawn and printed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from jsonargparse import Namespace

from ppl_vae.cli.common import evaluate_training_rows, rows_of, say_of_other_weights
from ppl_vae.cli.output import counted, say, show, warn
from ppl_vae.cli.report import write_report
from ppl_vae.cli.results import result_table, with_accuracy, with_labels_of_training, with_levels
from ppl_vae.cli.setup import Setup
from ppl_vae.cli.stages import Stages
from ppl_vae.diagnosis import Diagnosis, diagnose
from ppl_vae.evaluation import Evaluation, evaluate, netcdf_size, to_arviz
from ppl_vae.pairs import Pair
from ppl_vae.plots import draw_run
from ppl_vae.runs import (
    PLOTS,
    PLOTS_DARK,
    POSTERIOR,
    REPORT,
    RunFolder,
    write_results,
    write_weights,
)
from ppl_vae.runtime import DiskFullError, as_typed
from ppl_vae.stats import Result
from ppl_vae.training import Fit

LARGE_POSTERIOR = 10_000_000
"""Bytes of a posterior.nc that is only written if it is asked for: it would take most of the time of a run."""


class Measured(NamedTuple):
    """The results of a trained pair."""

    evaluation: Evaluation
    diagnosis: Diagnosis


def finish_run(
    run: RunFolder,
    setup: Setup,
    fitted: Fit,
    given: Namespace,
    stages: Stages,
    also: Result | None = None,
) -> None:
    """Everything that follows the training of a run.

    Args:
        run: The folder.
        setup: What was trained.
        fitted: How.
        given: What was typed.
        stages: What took how long.
        also: A result to print above those of the pair, in place of how long the training took.
    """
    progress = False if given.get("quiet") else None
    if also is None:
        told_of_training(fitted)
    with stages.stage("saving", told=False):
        weights = write_weights(run.path, fitted.model, fitted.guide, epochs=len(fitted.history))
    measured = _measure(run.path, setup, fitted, progress, stages)
    folder = run.path  # asked again: it may have been moved meanwhile
    with stages.stage("saving", told=False):
        write_results(
            folder,
            evaluation=measured.evaluation,
            diagnosis=measured.diagnosis,
            rows=rows_of(setup.data),
            weights=weights,
        )
    failed = []
    if given.get("posterior") != "never":
        with stages.stage(POSTERIOR, told=False):  # which tells its start
            always = given.get("posterior") == "always"
            failed += _export(folder, setup, fitted, measured, weights, always)
    reported = bool(given.get("report", True))
    with stages.stage("pictures"):
        failed += _draw(folder, setup, fitted, measured, weights, reported)
    unwritten = []
    if reported:
        with stages.stage("report"):
            unwritten = write_report(folder)
    say_of_other_weights(folder, weights)
    _show(folder, measured, reported and not unwritten, also)
    failed += unwritten
    for line in failed:
        warn(line)
    stages.tell()


def told_of_training(fitted: Fit) -> None:
    """Says how long a training took, and why it ended."""
    say(
        f"trained {counted(fitted.epochs, 'epoch')} ({counted(fitted.steps, 'step')}) in "
        f"{fitted.seconds:.0f} s: {fitted.stopped}"
        + (f"; kept epoch {fitted.best_epoch}" if fitted.best_epoch != fitted.epochs else "")
    )


def _measure(
    folder: Path, setup: Setup, fitted: Fit, progress: bool | None, stages: Stages
) -> Measured:
    seed, data, pair = setup.config["seed"], setup.data, (fitted.model, fitted.guide)
    num_samples = setup.config["num_samples"]
    with stages.stage("evaluation"):
        evaluation = evaluate(
            *pair, data.test, num_samples=num_samples, seed=seed, progress=progress
        )
    with stages.stage("evaluation of training rows"):
        train = evaluate_training_rows(
            *pair, data, evaluation.elbo, num_samples=num_samples, seed=seed, progress=progress
        )
    with stages.stage("diagnosis"):
        diagnosis = diagnose(
            *pair,
            data.test,
            train=train,
            evaluation=evaluation,
            fit=fitted,
            beta=fitted.beta,
            seed=seed,
            progress=progress,
        )
    evaluation = with_labels_of_training(with_levels(evaluation, data), data)
    evaluation = with_accuracy(evaluation, *pair, data)
    return Measured(evaluation, replace(diagnosis, run=str(folder)))


def _export(
    folder: Path, setup: Setup, fitted: Fit, measured: Measured, weights: str, always: bool
) -> list[str]:
    """Writes posterior.nc, unless it is large; if ArviZ or netCDF fail, that is returned."""
    try:
        if not always:
            size = netcdf_size(
                fitted.model, fitted.guide, setup.data.test, seed=setup.config["seed"]
            )
            if size > LARGE_POSTERIOR:
                say(
                    f"{POSTERIOR} is left out, because it would have about {size / 1e6:.0f} MB: "
                    f"`ppl-vae export {as_typed(folder)}` writes it (so does --posterior always)"
                )
                return []
        say(f"writing {POSTERIOR} for ArviZ")
        arviz = to_arviz(
            fitted.model,
            fitted.guide,
            setup.data.test,
            evaluation=measured.evaluation,
            seed=setup.config["seed"],
        )
        write_results(folder, arviz=arviz, weights=weights)
    except DiskFullError:
        raise
    except Exception as error:
        there = "; the one that is there is older" if (folder / POSTERIOR).exists() else ""
        return [
            f"{POSTERIOR} was not written{there}: {error} (`ppl-vae export {as_typed(folder)}` tries again)"
        ]
    return []


def _draw(
    folder: Path, setup: Setup, fitted: Fit, measured: Measured, weights: str, reported: bool
) -> list[str]:
    """Draws the pictures; what failed is returned, because it costs no results."""
    data = setup.data
    Pair.of(fitted.model, fitted.guide).to(torch.device("cpu"))
    return draw_run(
        folder / PLOTS,
        fitted.model,
        fitted.guide,
        data.test,
        fitted.history,
        *measured,
        data.test_labels,
        weights,
        setup.config["seed"],
        dark_folder(folder, reported),
    )


def dark_folder(folder: Path, reported: bool) -> Path | None:
    """Where the pictures of a run go that a report shows in the dark; None if nobody needs them.

    Args:
        folder: The run's folder.
        reported: Whether there will be a report.
    """
    dark = folder / PLOTS_DARK
    return (
        dark if reported or dark.is_dir() else None
    )  # those that are there would be of other weights


def _show(folder: Path, measured: Measured, reported: bool, also: Result | None) -> None:
    evaluation, diagnosis = measured
    results = (evaluation, diagnosis) if also is None else (also, evaluation, diagnosis)
    show(result_table([line for each in results for line in each.lines()], *results))
    show(f"\n{diagnosis.summary()}")
    show(f"\nrun folder: {folder}\npictures:   {folder / PLOTS}")
    if reported:
        show(f"report:     {folder / REPORT}")
