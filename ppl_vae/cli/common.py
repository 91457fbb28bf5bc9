"""What several subcommands do: open a run, start a folder, keep a result, say a line."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from torch import Tensor

from ppl_vae.checks import check
from ppl_vae.cli.options import UsageError
from ppl_vae.cli.setup import Setup, load_rows
from ppl_vae.data import Data
from ppl_vae.pairs import Pair
from ppl_vae.runs import (
    Run,
    load_run,
    prepare_folder,
    write_config,
    write_results,
)
from ppl_vae.runtime import resolve_device
from ppl_vae.training import Fit


def say_trained(fitted: Fit) -> None:
    """How long the training took, and why it ended."""
    say(
        f"trained {fitted.epochs} epochs ({fitted.steps} steps) in {fitted.seconds:.0f} s: {fitted.stopped}"
        + (f"; kept epoch {fitted.best_epoch}" if fitted.best_epoch != fitted.epochs else "")
    )


def check_setup(setup: Setup) -> None:
    """Raises an error for a pair that can not be trained; ``fit`` will issue the warnings."""
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


def complete_options(parser: ArgumentParser, given: Namespace) -> Namespace:
    """The options given, and the defaults of the others."""
    options = parser.get_defaults()
    options.update(given)
    return options


def open_run(parser: ArgumentParser, given: Namespace) -> tuple[Namespace, Run, Data]:
    """The options of a command that takes a run, the run, and its data."""
    options = complete_options(parser, given)
    if options.run is None:
        raise UsageError("RUN is missing: the folder of a run")
    run = load_run(options.run)
    return options, run, load_rows(run.config, options.data_dir)


def output_file(options: Namespace, default: Path) -> Path:
    """The file that a command writes, if it may be written."""
    output = default if options.output is None else Path(options.output)
    if output.exists() and not options.overwrite:
        raise FileExistsError(
            f"{output} is there already: choose another --output, or pass --overwrite"
        )
    if not output.parent.is_dir():
        raise FileNotFoundError(f"--output {output}: there is no folder {output.parent}")
    return output


def keep_result(file: Path, overwrite: bool, **result: Any) -> None:
    """Writes a result into the run, unless it holds one that may not be replaced."""
    if file.exists() and not overwrite:
        say(f"{file} is left as it was (--overwrite replaces it)")
    else:
        write_results(file.parent, **result)
        say(f"written: {file}")


def first_rows(data: Data, options: Namespace) -> Tensor:
    """The test rows, or the first of them."""
    if options.max_rows is not None and options.max_rows < 1:
        raise UsageError(f"--max_rows must be at least 1, not {options.max_rows}")
    return data.test[: options.max_rows]


def to_device(run: Run, device: str) -> None:
    """Moves the pair of a run to the device of this name."""
    Pair.of(run.model, run.guide).to(resolve_device(device))


def with_rows(result: Any, data: Data, num: int | None = None) -> dict[str, Any]:
    """A result, and on which rows it was made: runs on the same rows can be compared row by row."""
    x = data.test[:num]
    rows = {"name": data.name, "split": "test", "num": len(x), "sha256": _digest(x)}
    return {"rows": rows, **result.to_dict()}


def _digest(x: Tensor) -> str:
    digest = hashlib.sha256(f"{x.dtype} {tuple(x.shape)}".encode())
    digest.update(x.contiguous().numpy().tobytes())
    return digest.hexdigest()


def say(line: str) -> None:
    """What is no result goes to standard error."""
    print(line, file=sys.stderr)


def start_run(setup: Setup, given: Namespace) -> Path:
    """Checks the pair, makes the run folder and writes the configuration there."""
    folder = Path(given.get("run_dir") or new_folder(setup.config))
    check_setup(setup)
    prepare_folder(folder, overwrite=bool(given.get("overwrite")))
    write_config(folder, setup.config)
    say(f"{setup.data!r}\nrun folder: {folder}")
    return folder
