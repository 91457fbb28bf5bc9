"""The results that commands keep in a run and show."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppl_vae.cli.output import OutputError, say, show, warn
from ppl_vae.data import Data
from ppl_vae.diagnosis import overfits
from ppl_vae.evaluation import FEWEST_SAMPLES, Evaluation, evaluate
from ppl_vae.pairs import (
    DISTORTION,
    Pair,
    Program,
    measure_of_result,
    num_rows,
    take_rows,
    transformed,
)
from ppl_vae.runs import (
    EVALUATION,
    Run,
    RunFolder,
    describe_rows,
    evaluated_rows,
    read_result,
    read_rows,
    require_weights,
    results_of_other_weights,
    run_around,
    write_results,
)
from ppl_vae.runtime import HIDDEN, CorruptFileError, preserve_random_state, seed_everything
from ppl_vae.stats import Estimate

TRAINING_ROWS = 200
"""Training rows that are evaluated to see whether a pair overfits."""

COPY = "to keep the result, copy the run to a folder of your own, and run the command there"
ELSEWHERE = "choose a file elsewhere by --output"
"""What to do where a run's folder may not be written."""

_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)


def keep_and_show(result: object, keep: Callable[[], None]) -> None:
    """Keeps a result, then shows it, also if it could not be kept: it may have taken hours.

    Raises:
        Exception: What `keep` has raised, once the result was shown.
        OutputError: The result could not be shown. What was kept stays.
    """
    failed: Exception | None = None
    try:
        keep()
    except Exception as error:
        failed = error
    try:
        show(result)
    except (OutputError, BrokenPipeError):
        if failed is not None:
            say(f"ppl-vae: error: the result was not kept: {failed}")
        raise
    if failed is not None:
        raise failed


def keep_result(run: Run, name: str, overwrite: bool, **result: Any) -> None:
    """Writes a result into the run, but replaces an earlier one only with `overwrite`.

    Raises:
        ReplacedError: The run has other weights by now.
        PermissionError: The folder may not be written.
    """
    file = run.path / name
    if not overwrite and _is_left(run, name):
        return
    with writing(run, file):
        if not overwrite and _is_left(run, name):  # another command has made it meanwhile
            return
        write_results(run.path, weights=run.weights_sha256, **result)
    say(f"written: {file}")


def _is_left(run: Run, name: str) -> bool:
    """Whether there is a result of this name; it is said that it stays."""
    file = run.path / name
    if not file.exists():
        return False
    other = results_of_other_weights(run.path, run.weights_sha256, (name,))
    why = ", though it belongs to other weights" if other else ""
    say(f"{file} is left as it was{why} (--overwrite replaces it)")
    return True


def require_writable(run: Path, remedy: str | None = None) -> None:
    """Raises an error now, not after the work, if another process writes into the run.

    Args:
        run: The run's folder.
        remedy: What to do if the folder may not be written. None: the work can go on, its result is shown.

    Raises:
        LockedError: Another process writes there.
        PermissionError: The folder may not be written.
    """
    try:
        with _explained(run, run, remedy or COPY), RunFolder.open(run):
            pass
    except PermissionError as error:
        if remedy is not None:
            raise
        warn(str(error))


@contextmanager
def writing(run: Run | None, file: Path, remedy: str = COPY) -> Iterator[None]:
    """Locks the run that a file is written into, if any, and removes what a killed command has left there.

    Args:
        run: The run that the file is made of; None: there are several.
        file: The file.
        remedy: What to do if the folder may not be written.

    Raises:
        LockedError: Another process writes there.
        ReplacedError: The run that the file is made of has other weights by now than those that were read.
        PermissionError: The folder may not be written.
    """
    own = run is not None and run.path.resolve() in file.resolve().parents
    folder = run.path if run is not None and own else run_around(file)
    if folder is None:
        yield
        return
    with _explained(folder, file, remedy), RunFolder.open(folder):
        if run is not None and own:
            require_weights(run.path, run.weights_sha256)
        yield


@contextmanager
def _explained(run: Path, file: Path, remedy: str) -> Iterator[None]:
    """Says of a folder that may not be written, instead of its lock, what was to be written and what to do."""
    try:
        yield
    except OSError as error:
        of_run = error.filename is None or Path(error.filename).is_relative_to(run.resolve())
        if error.errno not in _FORBIDDEN or not (
            of_run or Path(error.filename).is_relative_to(run)
        ):
            raise
        what = "nothing can be written there" if file == run else f"{file.name} was not written"
        raise PermissionError(f"{run}: {what} ({error.strerror}); {remedy}") from error


def say_of_other_weights(run: Path, weights: str) -> None:
    """Says which results in a run are those of the weights before, and how to make them again."""
    for name, command in results_of_other_weights(run, weights).items():
        warn(f"{run / name} belongs to the weights before: `{command}` makes it again")


def warn_of_other_rows(run: Path, data: Data[Any]) -> None:
    """Says so if the test rows are not those of the run's evaluation: its results would be of other data."""
    then = evaluated_rows(run)
    num = None if then is None or then.get("split") != "test" else then.get("num")
    if then is not None and isinstance(num, int) and rows_of(data, num)["sha256"] != then["sha256"]:
        warn(
            f"the test rows are others than those of {run / EVALUATION}: the data ({data.name}) have changed, "
            "or their name means others in the current folder"
        )


def rows_of(data: Data[Any], num: int | None = None) -> dict[str, Any]:
    """Describes the evaluated rows: runs on the same rows can be compared row by row."""
    return describe_rows(take_rows(data.test, slice(num)), data.name, "test")


def evaluate_training_rows(
    model: Program,
    guide: Program,
    data: Data[Any],
    held: Estimate | None,
    *,
    num_samples: int,
    seed: int,
    progress: bool | None,
) -> Evaluation | None:
    """Evaluates some training rows, as test rows are.

    It is None if there are none, and for a guide that has parameters for each row.

    If their ELBO is not clearly higher than that of held-out rows, `held`, the pair does not overfit, and their
    log p(x) is wanted no more: it is what the guide's draws say then. Else it is found as that of test rows is.
    """
    n = num_rows(data.train)
    if n == 0 or Pair.of(model, guide).keeps_rows:
        return None
    rows = take_rows(data.train, torch.linspace(0, n - 1, min(n, TRAINING_ROWS)).long())
    if isinstance(rows, tuple) and bool((data.test[1] == HIDDEN).all()):
        rows = (rows[0], torch.full_like(rows[1], HIDDEN))  # as those of the test rows are
    if data.transform is not None:
        with preserve_random_state():
            seed_everything(seed)
            rows = transformed(rows, data.transform)
    how: dict[str, Any] = {"num_samples": num_samples, "seed": seed, "progress": progress}
    found = evaluate(model, guide, rows, method="guide", **how)
    if held is not None and not overfits(found.elbo, held):
        return found
    return evaluate(model, guide, rows, **how)


@dataclass(frozen=True)
class StoredEvaluation:
    """What a diagnosis reads of an evaluation, from a run's folder; of points `elbo` is log p(x, z)."""

    elbo: Estimate
    log_likelihood: Estimate
    unreliable: Tensor
    method: list[str]
    num_samples: int
    certain: bool = False


def stored_evaluation(run: Run, data: Data[Any]) -> StoredEvaluation | None:
    """The evaluation of a run's test rows; None if it is of other rows, other weights or an earlier version.

    It is None of a damaged file, too, of which it is said.
    """
    if results_of_other_weights(run.path, run.weights_sha256, (EVALUATION,)):
        return None
    then = evaluated_rows(run.path)
    num = None if then is None or then.get("split") != "test" else then.get("num")
    if then is None or not isinstance(num, int):
        return None
    if rows_of(data, num)["sha256"] != then.get("sha256"):
        return None
    try:
        rows = read_rows(run.path)
    except (OSError, CorruptFileError) as error:
        warn(f"the diagnosis goes without the evaluation: {error}")
        return None
    if rows is None or not {"log_likelihood", "unreliable", "method"} <= rows.keys():
        return None
    summary = read_result(run.path / EVALUATION) or {}
    evidence = torch.tensor(rows["log_likelihood"], dtype=torch.float64)
    bound, measure = torch.full_like(evidence, math.nan), measure_of_result(summary)
    if measure is not DISTORTION:
        if measure.name not in rows:
            return None
        bound = torch.tensor(rows[measure.name], dtype=torch.float64)
    unreliable = torch.tensor(rows["unreliable"]) > 0
    samples = summary.get("num_samples")
    return StoredEvaluation(
        *(Estimate(bound), Estimate(evidence), unreliable, rows["method"]),
        num_samples=samples if isinstance(samples, int) else FEWEST_SAMPLES,
        certain=summary.get("certain") is True,
    )


def distinct_names(files: Sequence[Path]) -> dict[str, Path]:
    """The files by the stem of what is written of each: those of one name get a number."""
    found: dict[str, Path] = {}
    for file in dict.fromkeys(files):
        stem, number = file.stem, 1
        while stem in found:
            number += 1
            stem = f"{file.stem}-{number}"
        found[stem] = file
    return found
