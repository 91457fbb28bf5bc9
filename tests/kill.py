"""Kills commands at random moments, and at every event on the disk, and looks at what is left.

    python tests/kill.py --kills 200 --seed 0

A command runs in a forked process, so that it need not import torch again. The promises, for each kill:

- nothing is lost: what was there before is whole, or the new run can be finished;
- nothing is changed: what is finished afterwards has the same bits as if nothing had been killed;
- nothing is left behind: after the next command that ends well there are no temporary files.

The exit code is 1 if one of them was broken. Ctrl-C prints the table of the kills so far. `tests/test_kill.py`
runs a part of it.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import catalogue
import h5py
import torch
from forked import Forked

from ppl_vae.cli import main, run_commands
from ppl_vae.cli.setup import load_rows
from ppl_vae.diagnosis import Gaps, inference_gaps
from ppl_vae.runs import Run, checkpoint_files, load_run, read_config, save_run
from ppl_vae.runtime import CorruptFileError, own_folder, read_tensors, replacing
from ppl_vae.training import checkpoints, prior_checkpoints

OPTIONS = (
    *("--max_rows", "30", "--num_samples", "5", "--batch_size", "15"),
    *catalogue.SMALL_NETWORK,
    *("--model.latent_dim", "2", "--compile", "false", "--quiet"),
)
EPOCHS = ("--max_epochs", "3")
SIGNALS = {"KILL": signal.SIGKILL, "TERM": signal.SIGTERM, "INT": signal.SIGINT}
KILLS_IN_A_ROW = 3
"""A training that goes on after a kill is killed again, up to so many times."""

Contents = dict[str, Any]

GAPS_DRAWN = ("plots/gaps.png", "plots_dark/gaps.png")


class BrokenPromise(AssertionError):
    """What a kill has done; `kind` is `lost`, `changed` or `left`."""

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(f"{kind}: {what}")
        self.kind = kind


# -- what is in a run ------------------------------------------------------------------------------------


def contents(run: Path) -> Contents:
    """All that must be the same, by the names of the files: without the seconds that a training took."""
    found: Contents = {}
    for file in sorted(run.rglob("*")):
        name = str(file.relative_to(run))
        if file.is_dir() or any(part.startswith(".") for part in file.relative_to(run).parts):
            continue
        if not file.exists():  # a link to nothing
            found[name] = None
        elif file.name == "metrics.csv":
            with file.open() as lines:
                found[name] = [{**row, "seconds": ""} for row in csv.DictReader(lines)]
        elif file.suffix == ".nc" and h5py.is_hdf5(file):
            found[name] = _draws(file)
        elif name in (
            "config.yaml",
            "diagnosis.json",
        ):  # which may name the run, or what it is made of
            found[name] = file.read_bytes().replace(bytes(run.parent.resolve()), b"")
        elif name == "weights.safetensors":
            found[name] = _bits(file)
        elif name == "report.html":  # it holds dates
            found[name] = re.findall(rb'weights_sha256" content="(\w+)"', file.read_bytes())
        elif not name.startswith("checkpoints"):
            found[name] = file.read_bytes()
    for newest in checkpoint_files(run / "checkpoints")[:1]:
        found["checkpoint"] = (newest.name, _bits(newest))
    return found


def _bits(file: Path) -> dict[str, bytes]:
    """The values of tensors. The file itself holds its metadata in a random order."""
    try:
        return {name: t.numpy().tobytes() for name, t in read_tensors(file)[0].items()}
    except (CorruptFileError, FileNotFoundError):
        return {"damaged": file.read_bytes() if file.is_file() else b""}


def _draws(file: Path) -> dict[str, bytes]:
    """The values of a netCDF file. The file itself holds the time at which it was made."""
    found: dict[str, bytes] = {}

    def add(name: str, part: Any) -> None:
        if isinstance(part, h5py.Dataset) and part.dtype.kind in "iufb":
            found[name] = part[()].tobytes()

    with h5py.File(file) as opened:
        opened.visititems(add)
    return found


def require_same(run: Path, expected: Contents) -> None:
    found = contents(run)
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            state = "other bits" if name in found and name in expected else "only one of them"
            raise BrokenPromise("changed", f"{name}: {state}")


def require_clean(place: Path) -> None:
    hidden = [str(f.relative_to(place)) for f in place.rglob("*") if f.name.startswith(".")]
    if hidden:
        raise BrokenPromise("left", ", ".join(sorted(hidden)))


# -- commands --------------------------------------------------------------------------------------------


def _two_pictures(folder: Path, *_: Any) -> list[str]:
    """In the place of `draw_run`, which takes ten times as long as all else together."""
    for name in ("khat", "manifold"):
        with replacing(own_folder(folder) / f"{name}.png") as file:
            file.write_bytes(b"\x89PNG " + name.encode())
    return []


@contextlib.contextmanager
def fast() -> Iterator[None]:
    """Checkpoints after every step; pictures of two bytes, and no posterior.nc."""
    with (
        patch.object(checkpoints, "CHECKPOINT_SECONDS", (0.0, 0.0)),
        patch.object(prior_checkpoints, "CHECKPOINT_SECONDS", -1.0),
        patch("ppl_vae.cli.finish.draw_run", _two_pictures),
        patch("ppl_vae.cli.finish.to_arviz", return_value=None),
    ):
        yield


def command(*arguments: str | Path) -> int:
    with fast():
        return main([str(argument) for argument in arguments])


def quietly(*arguments: str | Path) -> tuple[int, str]:
    """A command in this process: its exit code, and what it said on standard error."""
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(said):
        code = command(*arguments)
    return code, said.getvalue()


def must(*arguments: str | Path) -> None:
    """A command that must end well."""
    code, said = quietly(*arguments)
    if code != 0:
        raise BrokenPromise("lost", f"{arguments[0]} ended with {code}: {said.splitlines()[-1:]}")


def finish(run: Path, kind: str, *start: str | Path) -> None:
    """Goes on with a run that was killed; if nothing had been written, from the start."""
    if (run / "config.yaml").exists():
        must(kind, "--resume", run, "--quiet")
    else:
        must(*start)


# -- scenarios -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scenario:
    """A command that is killed.

    Attributes:
        work: What runs in the process that is killed, on a folder that holds the folder `run`.
        check: Looks at what is left and finishes it; its second argument is what was there before, its third
            what an unkilled command leaves.
        again: What is killed the next time, if the command is to go on; None kills once.
        before: Which of the prepared folders it starts with.
    """

    work: Callable[[Path], int]
    check: Callable[[Path, Contents, Contents], None]
    again: Callable[[Path], int] | None = None
    before: str = "nothing"


def _train(*more: str) -> Callable[[Path], tuple[str | Path, ...]]:
    return lambda place: ("train", "--run_dir", place / "run", *OPTIONS, *EPOCHS, *more)


_NEW, _OVER = _train("--seed", "1"), _train("--seed", "1", "--overwrite")


def _refit(place: Path) -> tuple[str | Path, ...]:
    source = place / "source"
    return ("refit", source, "--run_dir", place / "run", *EPOCHS, "--guide", "LowRank", "--quiet")


_CODES = (
    *("train", "--model", "VQVAE", "--model.quantizer.codes", "4", "--model.quantizer.dim", "2"),
    *("--model.network", "ConvolutionalGrid", "--model.network.channels", "4"),
    *("--model.network.halvings", "1", "--model.network.blocks", "0", "--max_rows", "30"),
    *("--num_samples", "5", "--batch_size", "15", "--compile", "false", "--quiet"),
    *("--max_epochs", "1", "--seed", "1"),
)


def _prior(place: Path) -> tuple[str | Path, ...]:
    small = ("--prior.channels", "4", "--prior.layers", "1", "--num_samples", "5", "--quiet")
    steps = (*EPOCHS, "--batch_size", "15")
    return ("refit-prior", place / "source", "--run_dir", place / "run", *small, *steps)


def _em(place: Path) -> tuple[str | Path, ...]:
    options = ("--model.components", "2", "--max_rows", "60", "--max_iterations", "4", "--quiet")
    return ("em", "--run_dir", place / "run", *options)


def _go_on(kind: str, start: Callable[[Path], tuple[str | Path, ...]]) -> Callable[[Path], int]:
    def work(place: Path) -> int:
        if (place / "run" / "config.yaml").exists():
            return command(kind, "--resume", place / "run", "--quiet")
        return command(*start(place))

    return work


def _check_new(
    kind: str, start: Callable[[Path], tuple[str | Path, ...]]
) -> Callable[[Path, Contents, Contents], None]:
    def check(place: Path, before: Contents, after: Contents) -> None:
        finish(place / "run", kind, *start(place))
        require_same(place / "run", after)

    return check


def _check_overwritten(place: Path, before: Contents, after: Contents) -> None:
    """The old run is whole, or the new one can be finished; nothing of the one in the other."""
    run = place / "run"
    if read_config(run)["seed"] == 3:
        if contents(run) != before:
            raise BrokenPromise("lost", "the old run is not whole")
        load_run(run)
        must(*_OVER(place))
    else:
        for name, content in contents(run).items():
            if name != "notes.txt" and before.get(name) == content and after.get(name) != content:
                raise BrokenPromise("changed", f"{name} of the old run is among the new one's")
        must("train", "--resume", run, "--quiet")
    require_same(run, after)


def _longer(place: Path) -> tuple[str | Path, ...]:
    return ("train", "--resume", place / "run", "--max_epochs", "4", "--quiet")


_OF_WEIGHTS = ("weights.safetensors", "evaluation.json", "evaluation.csv", "diagnosis.json")


def _check_longer(place: Path, before: Contents, after: Contents) -> None:
    """Results are read beside the weights that they belong to; beside others, it is said what to do."""
    run = place / "run"
    found = contents(run)
    for name in _OF_WEIGHTS:
        if found.get(name) not in (before[name], after[name]):
            raise BrokenPromise("lost", f"{name} is neither old nor new")
    is_whole = len({found[name] == after[name] for name in _OF_WEIGHTS}) == 1
    try:
        with (
            warnings.catch_warnings()
        ):  # of the lines that are left out, and of pictures of the old weights
            warnings.simplefilter("ignore")
            history = load_run(run).history
    except CorruptFileError as error:
        if is_whole or "--overwrite`" not in str(error):
            raise BrokenPromise("lost", str(error)) from error
    else:
        if not is_whole:
            raise BrokenPromise("changed", "results are read beside other weights")
        of_weights = (
            after if found["weights.safetensors"] == after["weights.safetensors"] else before
        )
        if len(history) != len(of_weights["metrics.csv"]):
            raise BrokenPromise("changed", "the history is not that of the weights")
    must(*_longer(place))
    require_same(run, after)


@cache
def _loaded(run: Path) -> Run:
    return load_run(run)


def _save_again(place: Path) -> int:
    """Writes another pair over a run, from Python."""
    other = _loaded(place.parent / "nothing" / "source")
    save_run(
        place / "run",
        other.model,
        other.guide,
        config={**other.config, "seed": 1},
        fit=other,
        evaluation=other.evaluation,
        diagnosis=other.diagnosis,
        overwrite=True,
    )
    return 0


def _check_saved(place: Path, before: Contents, after: Contents) -> None:
    run = place / "run"
    seed = load_run(run).config["seed"]
    if contents(run) != (before if seed == 3 else after):
        raise BrokenPromise("lost", "neither the old run nor the new one is whole")
    _save_again(place)
    require_same(run, after)


def _result(*words: str) -> Callable[[Path], tuple[str | Path, ...]]:
    return lambda place: (words[0], place / "run", "--overwrite", *words[1:])


_EVALUATE = _result("evaluate", "--num_samples", "3", "--max_rows", "5", "--quiet")
_DIAGNOSE = _result("diagnose", "--seed", "5", "--quiet")
_GAPS = _result("gaps", "--quiet")
_EXPORT = _result("export", "--num_samples", "2")


def _check_result(
    again: Callable[[Path], int], *files: str
) -> Callable[[Path, Contents, Contents], None]:
    """Each file is old or new, or it is said that they do not belong together; all others are as they were."""

    def check(place: Path, before: Contents, after: Contents) -> None:
        run = place / "run"
        found = contents(run)
        for name in before.keys() | found.keys() - set(files):
            if name not in files and found.get(name) != before.get(name):
                raise BrokenPromise("lost", f"{name} is not as it was")
        for name in files:
            if found.get(name) not in (before.get(name), after.get(name)):
                raise BrokenPromise("lost", f"{name} is neither old nor new")
        if len({found.get(name) == after.get(name) for name in files}) == 1:
            load_run(run)
        elif files[0] == "evaluation.json":
            try:
                load_run(run)
            except CorruptFileError as error:
                if "ppl-vae evaluate" not in str(error):
                    raise BrokenPromise("lost", f"it is not said what to do: {error}") from error
            else:
                raise BrokenPromise("lost", "a table of another evaluation is read")
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            if again(place) != 0:
                raise BrokenPromise("lost", "the command does not work again")
        require_same(run, after)

    return check


class Workplace:
    """Folders that scenarios start with, made once.

    Args:
        folder: Where.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._number = 0
        (folder / "nothing").mkdir()
        run = folder / "finished" / "run"
        must("train", "--run_dir", run, *OPTIONS, "--max_epochs", "2", "--seed", "3")
        (run / "notes.txt").write_text("the user's own")
        (run / "plots_dark").mkdir(exist_ok=True)
        for name in ("gaps.json", "gaps.csv", "posterior.nc", *GAPS_DRAWN):
            (run / name).write_text(f"the old {name}")
        source = folder / "finished" / "source"
        must("train", "--run_dir", source, *OPTIONS, "--max_epochs", "1", "--seed", "1")
        shutil.copytree(source, folder / "nothing" / "source")
        must(*_CODES, "--run_dir", folder / "codes" / "source")

    @cached_property
    def gaps(self) -> Gaps:
        """What `gaps` would find, which takes long."""
        run = load_run(self.folder / "finished" / "run")
        x = load_rows(run.config).test[:2]
        return inference_gaps(run.model, run.guide, x, num_samples=50, seed=0, progress=False)

    def copy(self, name: str) -> Path:
        self._number += 1
        place = self.folder / f"{name}-{self._number}"
        shutil.copytree(self.folder / name, place)
        return place

    def scenarios(self) -> Mapping[str, Scenario]:
        """All scenarios by name."""

        def gaps(place: Path) -> int:
            found = self.gaps
            with patch.object(run_commands, "inference_gaps", lambda *_, **__: found):
                return command(*_GAPS(place))

        def of(start: Callable[[Path], tuple[str | Path, ...]]) -> Callable[[Path], int]:
            return lambda place: command(*start(place))

        return {
            "train": Scenario(of(_NEW), _check_new("train", _NEW), _go_on("train", _NEW)),
            "train --overwrite": Scenario(of(_OVER), _check_overwritten, before="finished"),
            "train --resume": Scenario(of(_longer), _check_longer, of(_longer), "finished"),
            "refit": Scenario(of(_refit), _check_new("refit", _refit), _go_on("refit", _refit)),
            "refit-prior": Scenario(
                of(_prior),
                _check_new("refit-prior", _prior),
                _go_on("refit-prior", _prior),
                before="codes",
            ),
            "em": Scenario(of(_em), _check_new("em", _em), _go_on("em", _em)),
            "save_run": Scenario(_save_again, _check_saved, before="finished"),
            "evaluate": Scenario(
                of(_EVALUATE),
                _check_result(of(_EVALUATE), "evaluation.json", "evaluation.csv"),
                before="finished",
            ),
            "diagnose": Scenario(
                of(_DIAGNOSE), _check_result(of(_DIAGNOSE), "diagnosis.json"), before="finished"
            ),
            "gaps": Scenario(
                gaps,
                _check_result(gaps, "gaps.json", "gaps.csv", *GAPS_DRAWN),
                before="finished",
            ),
            "export": Scenario(
                of(_EXPORT), _check_result(of(_EXPORT), "posterior.nc"), before="finished"
            ),
        }


# -- killing ---------------------------------------------------------------------------------------------

_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree"}


class DiskEvents:
    """Counts what this process does with files below a folder, and sends it a signal before the n-th time.

    Every opening counts, so that there is a moment before and after each write and each flush.

    Args:
        place: The folder.
        n: At which event, from 0; None only counts.
        which: The signal.
    """

    def __init__(self, place: Path, n: int | None = None, which: int = signal.SIGKILL) -> None:
        self.names: list[str] = []
        self._place, self._n, self._which = str(place), n, which
        sys.addaudithook(self)  # which cannot be taken away: only in a process that is to end

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            if not str(arguments[0]).startswith(self._place):
                return
        elif event not in _CHANGES:
            return
        if len(self.names) == self._n:
            self._n = None  # what an interrupted process does to end is not interrupted again
            os.kill(os.getpid(), self._which)
        self.names.append(f"{event} {arguments[0]}")


def forked(work: Callable[[Path], int], place: Path, at: tuple[int, int] | None = None) -> Forked:
    """Starts work in a process of its own.

    Args:
        work: What to do.
        place: Where; what it prints goes into `place.said`, and what it did to files into `place.events`.
        at: The number of an event and the signal that it gets then.
    """

    def watched() -> int:
        events = DiskEvents(place, *at) if at else DiskEvents(place)
        try:
            return work(place)
        finally:
            place.with_suffix(".events").write_text("\n".join(events.names))

    return Forked(watched, place.with_suffix(".said"))


def wait(process: Forked) -> bool:
    """Waits for a process; whether it ended by itself.

    Raises:
        BrokenPromise: It ended neither well nor by a signal.
    """
    code = process.wait()
    if code in (-signal.SIGKILL, -signal.SIGTERM, 130):
        return False
    if code != 0:
        said = process.said.read_text()
        raise BrokenPromise("lost", f"the command ended with {code}: {said[-300:]}")
    return True


class Killer:
    """Runs a scenario and kills it.

    Args:
        workplace: The prepared folders.
        name: The name of the scenario.
    """

    def __init__(self, workplace: Workplace, name: str) -> None:
        self.workplace, self.scenario = workplace, workplace.scenarios()[name]
        if name == "gaps":
            assert workplace.gaps  # so that no forked process has to find them
        if name == "export":
            import arviz  # noqa: F401  # likewise
        place = workplace.copy(self.scenario.before)
        before = place / "run"
        self.before = contents(before) if before.exists() else {}
        started = time.monotonic()
        assert wait(forked(self.scenario.work, place)), "nobody kills this one"
        self.seconds = time.monotonic() - started
        require_clean(place)
        self.after = contents(before)
        self.events = place.with_suffix(".events").read_text().splitlines()

    def at_event(self, n: int, which: int = signal.SIGKILL) -> None:
        """Kills before the n-th event. Raises `BrokenPromise`."""
        place = self.workplace.copy(self.scenario.before)
        wait(forked(self.scenario.work, place, (n, which)))
        self._check(place)

    def at_random(self, moments: random.Random, which: int, most: int = KILLS_IN_A_ROW) -> int:
        """Kills at a random moment, and what goes on after it, up to some times in a row.

        Returns:
            The number of kills.
        """
        place = self.workplace.copy(self.scenario.before)
        work: Callable[[Path], int] | None = self.scenario.work
        kills = 0
        while work is not None and kills < most:
            process = forked(work, place)
            time.sleep(moments.uniform(0.0, self.seconds))
            os.kill(process.pid, which)
            kills += 1
            if wait(process):
                break
            work = self.scenario.again
        self._check(place)
        return kills

    def _check(self, place: Path) -> None:
        try:
            self.scenario.check(place, self.before, self.after)
        except BrokenPromise:
            raise
        except Exception as error:  # what is left cannot be read
            raise BrokenPromise("lost", f"{type(error).__name__}: {error}") from error
        require_clean(place)
        shutil.rmtree(place)
        for file in place.parent.glob(f"{place.name}.*"):
            file.unlink()


# -- the script ------------------------------------------------------------------------------------------


def _parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="at random moments, in all")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--signal", choices=[*SIGNALS, "all"], default="all")
    parser.add_argument("--scenario", action="append", help="one or more of them; default: all")
    parser.add_argument("--events", action="store_true", help="also at each event on the disk")
    return parser.parse_args(arguments)


def run_script(arguments: list[str] | None = None) -> int:
    """Kills, and prints a table."""
    options = _parsed(arguments)
    torch.set_num_threads(1)
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # which shells ignore in the background
    moments = random.Random(options.seed)
    signals = list(SIGNALS) if options.signal == "all" else [options.signal]
    broken: list[str] = []
    counts: dict[tuple[str, str], Counter[str]] = {}

    def count(name: str, how: str, kill: Callable[[], int | None]) -> int:
        found = counts.setdefault((name, how), Counter())
        try:
            kills = kill() or 1
        except BrokenPromise as error:
            kills = 1
            found[error.kind] += 1
            broken.append(f"{name}, {how}: {error}")
            print(broken[-1], file=sys.stderr, flush=True)
        found["kills"] += kills
        return kills

    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(KeyboardInterrupt):
        workplace = Workplace(Path(folder))
        names = options.scenario or list(workplace.scenarios())
        killers = {name: Killer(workplace, name) for name in names}
        cells = [(name, how) for name in names for how in signals]
        left = options.kills
        while left > 0:
            print(f"{left} kills to go", file=sys.stderr, flush=True)
            for name, how in cells:
                if left > 0:
                    most = min(left, KILLS_IN_A_ROW)
                    kill = partial(killers[name].at_random, moments, SIGNALS[how], most)
                    left -= count(name, how, kill)
        for name in names if options.events else ():
            for how in signals:
                for n in range(len(killers[name].events)):
                    at_event = partial(killers[name].at_event, n, SIGNALS[how])
                    count(name, f"{how} at each event", at_event)
    print("| scenario | signal | kills | lost | changed | left behind |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for (name, how), found in counts.items():
        numbers = " | ".join(str(found[kind]) for kind in ("kills", "lost", "changed", "left"))
        print(f"| {name} | {how} | {numbers} |")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(run_script())
