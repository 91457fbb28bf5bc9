"""The subcommand `sweep`."""

from __future__ import annotations

import argparse
import math
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from ppl_vae.cli.known import DEFAULTS
from ppl_vae.cli.light import command_parser
from ppl_vae.cli.mistakes import UsageError, did_you_mean
from ppl_vae.cli.output import counted, say, show, warn
from ppl_vae.cli.parsing import parsed
from ppl_vae.cli.report import write_report
from ppl_vae.cli.sweep_curves import backdrop_of, check_picture
from ppl_vae.cli.values import NOT_CHECKED, check_values
from ppl_vae.pairs import DISTORTION, MEASURES
from ppl_vae.plots import sweep_metrics, sweep_plane
from ppl_vae.runs import ERROR, LOG, REPORT, ROLES, names_in, plain
from ppl_vae.runtime import as_folder, duration, own_folder, replacing, require_seed, write_bytes
from ppl_vae.sweeps import (
    TABLE,
    Dispatch,
    Outcome,
    SpecError,
    SweepFolder,
    SweepRun,
    SweepSpec,
    SweepTable,
    Task,
    as_text,
    local_cluster,
    num_cores,
    read_spec,
    require_distributed,
    require_same_sweep,
    running_cluster,
    sizes_for,
    wrong_entropy,
)

_OF_THE_SWEEP = (
    *("run_dir", "resume", "overwrite", "quiet", "debug", "config", "print_config", "trust"),
    *("trust_packages", "help", "help-all", "versions", "made_by"),
)
"""Options of `ppl-vae train` that a sweep gives itself, or that make no run."""

_WRONG = (TypeError, ValueError, OSError)
"""What wrong values of options end with."""

_COMMAND = "ppl_vae.cli.attended"


def sweep(parser: ArgumentParser, given: Namespace) -> int:
    """Trains for all points of a description, as far as that has not been done."""
    options = parser.get_defaults()
    options.update(given)
    for name in ("workers", "threads"):
        if options[name] is not None and options[name] < 1:
            raise UsageError(f"--{name} must be at least 1, got {options[name]}")
    if options.scheduler is not None and options.workers is not None:
        raise UsageError(
            "--workers is for this machine: the cluster of --scheduler has its own workers"
        )
    file = Path(options.spec)
    path = Path("runs") / file.stem if options.sweep_dir is None else Path(options.sweep_dir)
    as_folder(path, "sweep_dir")
    try:
        spec = read_spec(file)
        runs = spec.runs()
        _require_used(file, spec)
        check_picture(file, spec.picture, runs)
        require_same_sweep(path, spec)
        folder = SweepFolder(path, runs)
        _check_options(file, runs, [run for run in runs if folder.state(run) == "done"])
    except SpecError as error:
        raise UsageError(str(error)) from error
    if options.dry_run:
        _show_runs(folder, runs)
        return 0
    with SweepFolder.opened(path, spec) as folder:
        try:
            todo = _to_do(folder, runs, options)
            if todo:
                _run(folder, todo, options)
        except KeyboardInterrupt:
            say(f"\nthe runs keep their checkpoints; go on with: {_again(options)}")
            raise
        return _tell(folder, spec)


def _require_used(file: Path, spec: SweepSpec) -> None:
    """Raises an error for an option of base whose value no run has, as grid or list give it others."""
    always = [set(spec.grid), set.intersection(*map(set, spec.points)) if spec.points else set()]
    for part, given in zip(("grid", "each point of list"), always, strict=True):
        of_base = dict(each for option in spec.base.items() for each in _with_arguments(*option))
        for name in sorted(of_base.keys() & given):
            raise UsageError(
                f"{file}: {name} is in base ({as_text(of_base[name])}) and in {part}, so that no run would "
                "have the value of base: write it in one of the two"
            )


def _with_arguments(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """An option, and those of a class's arguments that stand inside of it, by their names.

    Example:
        >>> own = {"class_path": "ELBO", "init_args": {"beta": 3}}
        >>> dict(_with_arguments("objective", own))["objective.beta"]
        3
    """
    yield name, value
    if isinstance(value, Mapping):
        inner = value.get("init_args", {}) if "class_path" in value else value
        for key, own in inner.items() if isinstance(inner, Mapping) else ():
            yield from _with_arguments(f"{name}.{key}", own)


def _check_options(file: Path, runs: Sequence[SweepRun], done: Sequence[SweepRun] = ()) -> None:
    """Raises an error for options that `ppl-vae train` does not take, or not with these values.

    Args:
        file: The description, for the message.
        runs: All runs.
        done: Those that need no data any more, which may be gone.
    """
    left = {run.identity for run in runs} - {run.identity for run in done}
    known = [a.dest for a in command_parser("train")._actions if a.dest not in _OF_THE_SWEEP]
    alike: dict[tuple[str, ...], list[SweepRun]] = {}
    for run in runs:
        own = tuple(a for a in run.arguments() if not a.startswith("--seed="))
        alike.setdefault(own, []).append(run)
    for run in runs:
        try:
            require_seed(run.options["seed"])
        except (TypeError, ValueError) as error:
            raise UsageError(f"{file}: {error}") from error
    for arguments, members in alike.items():
        _require_known(file, members[0], known)
        try:
            parser, given = parsed("train", arguments)
            if any(run.identity in left for run in members):
                check_values(parser, given)
        except (UsageError, argparse.ArgumentError, *_WRONG) as error:
            said = plain(str(error)).replace("unrecognized arguments: ", "there is no option ")
            raise UsageError(f"{file}: {said}") from error


def _require_known(file: Path, run: SweepRun, known: Sequence[str]) -> None:
    """Raises an error for an option that there is not, or that a sweep sets itself."""
    for name in run.options:
        if name in _OF_THE_SWEEP or name.partition(".")[0] in _OF_THE_SWEEP:
            raise UsageError(f"{file}: {name} cannot be an option of a sweep, which sets it itself")
        if name.partition(".")[0] not in known:
            raise UsageError(f"{file}: there is no option '{name}'{did_you_mean(name, known)}")


def _show_runs(folder: SweepFolder, runs: Sequence[SweepRun]) -> None:
    states = [folder.state(run) for run in runs]
    show(f"{len(runs)} runs in {folder.path}, {states.count('done')} of them done:")
    for run, state in zip(runs, states, strict=True):
        typed = shlex.join(["ppl-vae", *_task(folder, run).begin])
        show(f"\n{run.name} ({state})\n  {typed}")
    say(f"not checked: {NOT_CHECKED}")


def _to_do(folder: SweepFolder, runs: Sequence[SweepRun], options: Any) -> list[SweepRun]:
    """The runs that are missing, with those that failed if they are to be tried again."""
    states = {run.name: folder.state(run) for run in runs}
    counts = [(word, [*states.values()].count(word)) for word in ("done", "interrupted", "failed")]
    there = ", ".join(f"{count} {word}" for word, count in counts if count)
    say(f"{len(runs)} runs in {folder.path}{f': {there}' if there else ''}")
    left = ("missing", "interrupted", *(("failed",) if options.retry_failed else ()))
    return [run for run in runs if states[run.name] in left]


def _task(folder: SweepFolder, run: SweepRun) -> Task:
    path = str(folder.of(run))
    kept_out = ("--posterior=", "--report=")  # of config.yaml
    typed = [a for a in run.arguments() if a.startswith(kept_out)]
    if packages := own_packages(run.options):  # typed in the description, so they are trusted
        typed.append(f"--trust_packages={','.join(packages)}")
    return Task(
        name=run.name,
        folder=path,
        options=dict(run.options),
        begin=["train", *run.arguments(), f"--run_dir={path}"],
        go_on=["train", f"--resume={path}", *typed],
        module=_COMMAND,
        place=os.getcwd(),
        sweep="",
    )


def own_packages(options: Mapping[str, Any]) -> list[str]:
    """The packages of classes that a description names and that a run folder may not name by itself.

    Example:
        >>> own_packages({"guide": "my_pair.Guide", "model.network": "MLP", "data": "rows.npy"})
        ['my_pair']
    """
    classes = {n: v for n, v in options.items() if n.partition(".")[0] in {*ROLES, *DEFAULTS}}
    names = [name for option, v in classes.items() for *_, name in names_in(v, "part", option)]
    dotted = [name for name in names if all(map(str.isidentifier, name.split(".")))]
    tops = {name.partition(".")[0] for name in dotted if "." in name}
    return sorted(tops - {"ppl_vae", "torch", "pyro"})


def _run(folder: SweepFolder, todo: Sequence[SweepRun], options: Any) -> None:
    """Does runs, and tells of each that has ended."""
    require_distributed()
    cluster: AbstractContextManager[Any]
    if options.scheduler is None:
        sizes = sizes_for(len(todo), num_cores(), options.workers, options.threads)
        each = counted(sizes.threads, "thread")
        say(f"{sizes.workers} at a time, {each} each; log: RUN/{LOG}")
        cluster, threads = local_cluster(sizes.workers), sizes.threads
    else:
        cluster, threads = running_cluster(options.scheduler), options.threads
    tasks = [_task(folder, run) for run in todo]
    by_name = {run.name: run for run in todo}
    took: list[float] = []
    local = options.scheduler is None
    with cluster as client, Dispatch(client, tasks, threads, local=local) as dispatch:
        if not local:
            number = dispatch.num_workers()
            waiting = "" if number else ", for which the sweep waits"
            say(f"the scheduler has {counted(number, 'worker')}{waiting}; log: RUN/{LOG}")
        for number, outcome in enumerate(dispatch, 1):
            took.append(outcome.seconds)
            left = dispatch.seconds_left(sum(took) / len(took))
            rest = f"; about {duration(left)} left" if number < len(todo) else ""
            if outcome.state == "failed":
                folder.note_failure(by_name[outcome.name], outcome.error)
            said = _said(folder, by_name[outcome.name], outcome)
            say(f"{number} of {len(todo)}: {outcome.name}: {said}{rest}")


def _said(folder: SweepFolder, run: SweepRun, outcome: Outcome) -> str:
    """What is said of a run that has ended."""
    if outcome.state == "failed":
        return f"failed: {outcome.error}"
    if outcome.state == "stopped":
        return "stopped"
    row = SweepTable.of(folder, [run]).rows[0]
    measure = next((m for m in MEASURES if math.isfinite(row[m.name])), DISTORTION)
    return f"{measure.text} {row[measure.name]:.2f} nats ({duration(outcome.seconds)})"


def _again(options: Any) -> str:
    """The command that goes on with a sweep."""
    words = ["ppl-vae", "sweep", str(options.spec)]
    for name in ("sweep_dir", "scheduler", "workers", "threads"):
        if options[name] is not None:
            words += [f"--{name}", str(options[name])]
    return shlex.join(words)


def _tell(folder: SweepFolder, spec: SweepSpec) -> int:
    """Writes and shows the table, and draws the pictures; the exit status says whether something is missing."""
    runs = spec.runs()
    table = SweepTable.of(folder, runs)
    write_bytes(folder.path / TABLE, table.to_csv().encode())
    packages = sorted({name for run in runs for name in own_packages(run.options)})
    backdrop = backdrop_of(folder, spec.picture, runs, packages)
    if doubt := wrong_entropy(spec.picture.entropy, table):
        backdrop = replace(backdrop, entropy=None)
        warn(doubt)
    pictures = []
    plane = partial(sweep_plane, backdrop=backdrop)
    for name, draw in (("rate_distortion", plane), ("metrics", sweep_metrics)):
        try:
            figure = draw(table)
            if figure is not None:
                picture = own_folder(folder.path / "plots") / f"{name}.png"
                with replacing(picture) as temporary:
                    figure.savefig(temporary)
                pictures.append(picture)
        except Exception as error:
            warn(f"{name}.png was not drawn: {error}")
    show(table.to_markdown())
    show(f"\ntable of all runs: {folder.path / TABLE}")
    for picture in pictures:
        show(f"picture: {picture}")
    unwritten = write_report(folder.path)
    if not unwritten:
        show(f"report: {folder.path / REPORT}")
    for line in unwritten:
        warn(line)
    for line in table.unread:
        warn(line)
    failed = [row for row in table.rows if row["state"] == "failed"]
    for row in failed:
        warn(f"{row['run']} failed: {row['error']} ({folder.path / row['run'] / ERROR})")
    if failed:
        warn(f"{len(failed)} of {len(runs)} runs failed; --retry_failed runs them again")
    undone = table.unread or any(row["state"] != "done" for row in table.rows)
    return 1 if undone else 0
