"""The start of a training: everything that can be wrong is checked, then the run folder is opened."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jsonargparse import ArgumentParser, Namespace

from ppl_vae.checks import DISCRETE, DataCheck, check, check_rows
from ppl_vae.cli.known import BY_EM, find_known
from ppl_vae.cli.mistakes import UsageError
from ppl_vae.cli.output import say
from ppl_vae.cli.own_modules import trust_of
from ppl_vae.cli.setup import Setup, checked, data_paths, with_defaults
from ppl_vae.pairs import (
    Batches,
    Pair,
    PairError,
    Trace,
    is_delta,
    is_improper,
    latent_sites,
    take_rows,
    trace_pair,
    transformed,
)
from ppl_vae.runs import (
    CHECKPOINTS,
    EVALUATION,
    MADE_BY,
    MAY_CHANGE,
    WEIGHTS,
    RunFolder,
    Trust,
    command_again,
    is_of_a_run,
    made_by,
    read_config,
)
from ppl_vae.runtime import as_typed, preserve_random_state, require_count, require_samples
from ppl_vae.training import Processes

_NEEDED = ("device", "seed", "num_samples")
"""Options that a config.yaml saved from Python may lack."""

_CHECKED_ROWS = 1024
"""Rows per run of the pair when all test rows are checked."""


class Started(NamedTuple):
    """A run folder that a command writes into.

    Attributes:
        folder: The folder.
        resume: Whether the training in it goes on.
    """

    folder: RunFolder
    resume: bool


def options_of(
    command: str, parser: ArgumentParser, given: Namespace
) -> tuple[dict[str, Any], dict[str, Trust]]:
    """All options of a training: those that were typed, or those of the run that is to go on.

    Returns:
        The options, and how far each that comes from a folder may be trusted.

    Raises:
        UsageError: The options do not go together, another command made the run, or it has nothing to go on
            with.
        UntrustedError: The run's config.yaml names what it may not name.
    """
    if given.get("resume") is not None:
        config = config_of_run(command, parser, given)
        trust = trust_of(given, given.resume)
        trust.check(config)  # before the names in it are read
        defaults = with_defaults(parser, Namespace())  # type: ignore[no-untyped-call]
        config = {name: defaults[name] for name in _NEEDED if name in defaults} | config
        options = checked(Path(given.resume), config)
        options |= {name: given[name] for name in MAY_CHANGE if name in given}
        for name in ("max_epochs", "max_iterations"):
            require_count(name, options.get(name, 1), 1)
        require_samples("num_samples", options.get("num_samples", 1))
        return options, dict.fromkeys(options, trust)
    if command != "refit" and (given.get("trust") or given.get("trust_packages")):
        raise UsageError("--trust is for a RUN to resume: what you type yourself is trusted")
    options = with_defaults(parser, given)
    own = step_size_of(options.get("optimizer"))
    if own is not None and options.get("learning_rate") is not None:
        raise UsageError(
            f"--optimizer.lr {own} and --learning_rate {options['learning_rate']} are two step sizes: give one "
            "of the two"
        )
    require_samples("num_samples", options.get("num_samples", 1))
    return options, {}


def step_size_of(optimizer: Any) -> Any:
    """The step size in the description of an optimizer; None if there is none."""
    arguments = optimizer.get("init_args") if isinstance(optimizer, Mapping) else None
    return arguments.get("lr") if isinstance(arguments, Mapping) else None


def config_of_run(command: str, parser: ArgumentParser, given: Namespace) -> dict[str, Any]:
    """The configuration that a run was started with, for the command that made it.

    Raises:
        UsageError: There are options that cannot change, another command made the run, or it has nothing to go
            on with.
    """
    path = Path(given.resume)
    asked = {"resume", "trust", "trust_packages", "quiet", "debug", "posterior", "report"}
    asked |= {*MAY_CHANGE}
    changed = {name for name in set(vars(given)) - asked if given[name] is not None}
    if changed:
        names = ", ".join(f"--{name}" for name in sorted(changed))
        may = ", ".join(f"--{name}" for name in MAY_CHANGE if name in parser.get_defaults())
        raise UsageError(
            f"--resume continues the run as it was started: leave out {names} (only {may} may change)"
        )
    config = read_config(path)
    config.pop("versions", None)
    maker = made_by(config)
    if maker != command:
        again = command_again(config, path)
        does = "continues it" if "--resume" in again else "fits it anew"
        raise UsageError(f"{path} was made by `ppl-vae {maker}`, which {does}: {again}")
    goes_on = has_checkpoints(path)
    # A refit writes weights, those of its model, before it begins.
    last = EVALUATION if command == "refit" else WEIGHTS
    if not goes_on and (path / last).exists():
        raise UsageError(
            f"{path} holds a finished run without checkpoints: there is nothing to continue, and nothing was "
            f"changed; to train it again from the start, use --run_dir {as_typed(path)} --overwrite"
        )
    return config


def has_checkpoints(path: Path) -> bool:
    """Whether a run folder holds what a training can go on from."""
    folder = path / CHECKPOINTS  # `glob` would find none in one that may not be read
    return folder.is_dir() and any(name.startswith("step-") for name in os.listdir(folder))


def check_setup(setup: Setup) -> None:
    """Raises an error for what would fail later: the pair, the test rows.

    `fit` checks the rows of the training and issues the warnings.
    """
    x = take_rows(setup.data.train, slice(setup.config.get("batch_size") or 128))
    x = x if setup.data.transform is None else transformed(x, setup.data.transform)
    report = check(
        setup.model,
        setup.guide,
        x,
        objective=setup.objective,
        max_epochs=setup.config.get("max_epochs", 1),
    )
    try:
        report.raise_errors()
    except PairError as error:
        raise PairError(_as_typed(str(error), setup)) from error
    pair = Pair.of(setup.model, setup.guide)
    rows = Batches(setup.data.test, pair, "the test rows")
    with preserve_random_state(), torch.no_grad(), pair.scope(), pair.mode(training=False):
        if not pair.keeps_rows:
            found = DataCheck(pair, x)
            check_rows(rows.ordered(_CHECKED_ROWS), found.first_problem, "the test rows")
        _require_proper(*trace_pair(pair, x))


def _require_proper(model_trace: Trace, guide_trace: Trace) -> None:
    """Refuses draws of a latent that has no density in the model: a trained pair could not be diagnosed.

    Raises:
        PairError: There is one.
    """
    for name, site in latent_sites(model_trace).items():
        other = guide_trace.nodes.get(name)
        if is_improper(site) and other is not None and not is_delta(other):
            raise PairError(
                f"p(z) of '{name}' is improper, and the guide draws it: there would be neither an ELBO nor log "
                "p(x). Take a guide that gives points (--guide DeltaEncoder), or another --model.prior"
            )


def _as_typed(message: str, setup: Setup) -> str:
    """What is wrong with a pair; if its guide is not for discrete latents, with what to type for this model."""
    name = type(setup.model).__name__
    if find_known("model", name, kind=BY_EM) is None:
        return message
    instead = (
        f"`ppl-vae em --model {name}` fits it; `ppl-vae train` takes it with --guide Exact or "
    )
    return message.replace(DISCRETE, f"{instead}--guide Enumerated")


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


@contextmanager
def started(
    command: str,
    setup: Setup,
    given: Namespace,
    processes: Processes | None = None,
) -> Iterator[Started]:
    """Opens the run folder of a command, and says how to go on if the user interrupts it.

    Args:
        command: The command.
        setup: What is trained.
        given: The options that the user gave.
        processes: Those of the training: the first one writes, the others only read. None: there is one.
    """
    is_first = processes is None or processes.is_first
    folder: RunFolder | None = None
    try:
        with ExitStack() as stack:
            with nullcontext() if processes is None else processes.ending_together():
                path = Path(given.get("resume") or given.get("run_dir") or new_folder(setup.config))
                if given.get("resume") is None:
                    _require_apart_from_data(path, setup.config)
                if processes is not None:
                    path = processes.from_first(path)  # the name contains the time
                resume = given.get("resume") is not None and has_checkpoints(path)
                if processes is not None:
                    resume = processes.from_first(resume)
                if is_first:
                    folder = stack.enter_context(_opened(command, setup, given, path))
                    say(f"{setup.data!r}\nrun folder: {path}")
            yield Started(folder or RunFolder.of_other_process(path), resume)
    except KeyboardInterrupt:
        if folder is not None and path.exists():
            went_on = f"continue with: {command_again(folder.config or {}, path)}"
            say(f"\n{went_on if folder.keeps else f'the run in {path} is as it was'}")
        raise


def require_apart(target: Path, source: Path, which: str = "the run whose model is kept") -> None:
    """Raises an error if one of two runs is the other, or inside of it.

    Args:
        target: The run that is to be written.
        source: The run that it is made of.
        which: What that is, in words.

    Raises:
        UsageError: It is.
    """
    new, old = target.resolve(), source.resolve()
    if new == old:
        raise UsageError(f"--run_dir {target} is {which}, and would be lost: choose another folder")
    if new in old.parents:
        raise UsageError(f"--run_dir {target} holds {source}, {which}: choose another folder")
    if old in new.parents:
        raise UsageError(
            f"--run_dir {target} is inside of {source}, {which}, which is left as it is: "
            "choose another folder"
        )


def _require_apart_from_data(path: Path, config: Mapping[str, Any]) -> None:
    """Raises an error if a run would be made among the pictures that it is trained on, or in their place.

    Raises:
        UsageError: It would.
    """
    run = path.resolve()
    for data in data_paths(config):
        if data in (run, *run.parents):
            raise UsageError(
                f"the run folder {path} is in the folder of the data ({config['data']}), and its pictures "
                "would be data, too: choose a --run_dir outside of it"
            )
        if run in data.parents and is_of_a_run(data):
            raise UsageError(
                f"--data {config['data']} is a part of the run in {path}, which is to be replaced: choose "
                "another --run_dir"
            )


def _opened(command: str, setup: Setup, given: Namespace, path: Path) -> RunFolder:
    config = {MADE_BY: command, **setup.config}
    if given.get("resume") is not None:
        return RunFolder.open(path, config)
    return RunFolder.new(path, config, overwrite=bool(given.get("overwrite")))
