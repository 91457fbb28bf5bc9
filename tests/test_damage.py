"""Damaged run folders: every file of a run, damaged in every way, read by every command.

A command either does what it does with the undamaged run, because it does not need the file, or ends with a
line that names it. It changes no other file. What nobody can notice is left out: another digit in metrics.csv
or in a result's JSON, and another value of an option in config.yaml. They hold no checksums, because people
write them too. All else (weights, checkpoints, the tables of results) has one.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings, strategies as st
from kill import EPOCHS, OPTIONS, contents, fast
from matplotlib.figure import Figure

from ppl_vae.cli import main
from ppl_vae.diagnosis import inference_gaps
from ppl_vae.runs import load_run, write_results

FILES = (
    *("config.yaml", "weights.safetensors", "metrics.csv", "evaluation.json", "evaluation.csv"),
    *("diagnosis.json", "gaps.json", "gaps.csv", "posterior.nc", "plots/khat.png"),
    *("checkpoints/NEWEST", "checkpoints/BEFORE"),
)
FEW = ("--max_rows", "5", "--num_samples", "2", "--quiet")
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "load_run": (),
    "evaluate": ("evaluate", "RUN", *FEW),
    "diagnose": ("diagnose", "RUN", "--quiet"),
    "gaps": ("gaps", "RUN", *FEW),
    "sample": ("sample", "RUN", "--num", "2", "-o", "OUT/draws.npz"),
    "compare": ("compare", "RUN", "WHOLE", "-o", "OUT/comparison.png"),
    "export": ("export", "RUN", "--num_samples", "1", "-o", "OUT/draws.nc"),
    "refit": ("refit", "RUN", "--run_dir", "OUT/refitted", "--max_epochs", "1", "--quiet"),
    "resume": ("train", "--resume", "RUN", "--quiet"),
}
UNCHECKED = ("config.yaml", "metrics.csv", "evaluation.json", "diagnosis.json")
"""Files without a checksum, that people may write: other values in them are not noticed."""

OPTIONAL = ("metrics.csv", "evaluation.json", "diagnosis.json")
"""What a run need not hold: a result that is not there was not asked for, and an empty table has no lines."""

RAW = re.compile(
    r"not supported between|object (is not|cannot)|unexpected keyword|unhashable|NoneType|"
    r"invalid literal|not enough values|too many values|out of range|positional argument|subscript"
)
"""Words of Python's own errors, which say nothing to a user."""


class Damage(NamedTuple):
    """What is done to a file: how, where (a part of its length), and with which bytes or file."""

    how: str
    place: float = 0.5
    mask: int = 1
    length: int = 1
    other: str = "metrics.csv"


damages = st.builds(
    Damage,
    how=st.sampled_from(
        ("truncate", "flip", "empty", "bytes", "another", "folder", "link", "dangling", "remove")
    ),
    place=st.floats(0.0, 1.0, exclude_max=True),
    mask=st.integers(1, 255),
    length=st.integers(1, 3),
    other=st.sampled_from(FILES),
)


def file_of(run: Path, name: str) -> Path:
    steps = sorted((run / "checkpoints").glob("step-*"))
    chosen = {"checkpoints/NEWEST": steps[-1], "checkpoints/BEFORE": steps[-2]}
    return chosen.get(name, run / name)


def do(damage: Damage, file: Path, run: Path) -> None:
    data = bytearray(file.read_bytes())
    other = file_of(run, damage.other).read_bytes()
    file.unlink()
    place = int(damage.place * len(data))
    match damage.how:
        case "truncate":
            file.write_bytes(data[:place])
        case "flip":
            for i in range(place, min(place + damage.length, len(data))):
                data[i] ^= damage.mask
            file.write_bytes(data)
        case "empty":
            file.write_bytes(b"")
        case "bytes":
            file.write_bytes(bytes([damage.mask]) * int(1000 * damage.place))
        case "another":
            file.write_bytes(other)
        case "folder":
            file.mkdir()
        case "link":
            aside = run.parent / "aside"
            aside.write_bytes(data)
            file.symlink_to(aside)
        case "dangling":
            file.symlink_to(run.parent / "nowhere")


class Result(NamedTuple):
    code: int
    out: str
    err: str


@contextlib.contextmanager
def small(gaps: Any) -> Iterator[None]:
    """Commands without what takes long: the numbers of `gaps`, and pictures."""
    with (
        fast(),
        patch("ppl_vae.cli.run_commands.inference_gaps", lambda *_, **__: gaps),
        patch("ppl_vae.cli.run_commands.gaps_plot", lambda _: Figure((0.1, 0.1))),
        patch("ppl_vae.cli.run_commands.comparison_plot", lambda _: Figure((0.1, 0.1))),
        patch("ppl_vae.cli.run_commands.as_netcdf", lambda *_: b"draws"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("default")
        yield


class Bench:
    """A finished run, and what each command does with it.

    Args:
        folder: Where it is made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = folder / "whole"
        with fast(), contextlib.redirect_stdout(io.StringIO()):
            assert main(["train", "--run_dir", str(self.run), *OPTIONS, *EPOCHS]) == 0
        loaded = load_run(self.run)
        x = torch.randint(0, 17, (2, 1, 8, 8)).float()
        options: dict[str, Any] = {"num_samples": 50, "progress": False, "seed": 0}
        self.gaps = inference_gaps(loaded.model, loaded.guide, x, **options)
        write_results(self.run, gaps=self.gaps)
        (self.run / "posterior.nc").write_bytes(b"\x89 draws, which no command reads" * 9)
        self.contents = contents(self.run)
        self.expected: dict[str, Result] = {}

    @contextlib.contextmanager
    def copy(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(dir=self.folder) as place:
            shutil.copytree(self.run, Path(place) / "run")
            (Path(place) / "out").mkdir()
            yield Path(place)

    def do(self, command: str, place: Path) -> Result:
        """A command on a copy."""
        out, err = io.StringIO(), io.StringIO()
        run = place / "run"
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), small(self.gaps):
            if command == "load_run":
                try:
                    found = load_run(run)
                    print(found.history, found.evaluation, found.evaluation_rows, found.diagnosis)
                    code = 0
                except (ValueError, TypeError, OSError) as error:
                    print(error, file=err)
                    code = 1
            else:
                named = {"RUN": str(run), "WHOLE": str(self.run), "OUT": str(place / "out")}
                words = [
                    re.sub("RUN|WHOLE|OUT", lambda m: named[m[0]], w) for w in COMMANDS[command]
                ]
                code = main(words)
        if code == 0 and command == "sample":
            with np.load(place / "out" / "draws.npz") as draws:
                print({name: values.sum() for name, values in draws.items()}, file=out)
        return Result(code, out.getvalue().replace(str(place), ""), err.getvalue())

    def expect(self, command: str) -> Result:
        if command not in self.expected:
            with self.copy() as place:
                self.expected[command] = self.do(command, place)
            assert self.expected[command].code == 0, self.expected[command]
        return self.expected[command]

    def check(self, name: str, damage: Damage, command: str) -> None:
        """Damages a copy, runs a command on it, and looks at both."""
        expected = self.expect(command)
        with self.copy() as place:
            run = place / "run"
            file = file_of(run, name)
            do(damage, file, run)
            before = snapshot(run)
            done = self.do(command, place)
            unnoticed = name in UNCHECKED and damage.how in ("truncate", "flip", "bytes")
            unnoticed |= name in OPTIONAL and damage.how in ("remove", "dangling", "empty")
            another = file_of(run, damage.other).suffix if damage.how == "another" else ""
            unnoticed |= name in UNCHECKED and another == file.suffix
            if done.code == 0:
                if not unnoticed:
                    assert done.out == expected.out
            else:
                assert done.code in (1, 2)
                assert done.out in ("", expected.out)
                told = done.err.splitlines()
                told = [line for line in told if "error" in line or command == "load_run"]
                assert 1 <= len(told) <= 3
                assert "Traceback" not in done.err
                assert not RAW.search(done.err)
                by_name = file.stem in done.err or name.partition("/")[0] in done.err
                assert by_name or name == "config.yaml"
            own = str(file.relative_to(run))
            if command == "resume" and name.startswith("checkpoints") and done.code:
                return  # it had gone on from the one before, until it came to this one
            if command == "resume":  # it writes the same again
                if not unnoticed:
                    found = contents(run)
                    other = {n for n in found if found[n] != self.contents.get(n)}
                    assert other <= {own, "checkpoint" if "/" in name else own}
                return
            after = snapshot(run)
            changed = {n for n in before.keys() | after.keys() if before.get(n) != after.get(n)}
            assert changed <= {own, *WRITTEN.get(command, ())}, done
            assert not (changed and done.code), done


WRITTEN = {
    "evaluate": ("evaluation.json", "evaluation.csv"),
    "diagnose": ("diagnosis.json",),
    "gaps": ("gaps.json", "gaps.csv", "plots/gaps.png", "plots_dark", "plots_dark/gaps.png"),
}
"""What a command writes if it is not there."""


def snapshot(run: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for file in run.rglob("*"):
        kind = os.readlink(file) if file.is_symlink() else None
        found[str(file.relative_to(run))] = kind or (file.is_file() and file.read_bytes())
    return found


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("damaged"))


Check = Callable[..., None]


def over_random_damage(count: int) -> Callable[[Check], Check]:
    def decorate(check: Check) -> Check:
        options = settings(
            max_examples=count,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        return options(
            given(
                name=st.sampled_from(FILES),
                damage=damages,
                command=st.sampled_from(tuple(COMMANDS)),
            )(check)
        )

    return decorate


@pytest.mark.slow
@over_random_damage(6)
def test_random_damage_is_named_or_does_not_matter(
    name: str, damage: Damage, command: str, bench: Bench
) -> None:
    bench.check(name, damage, command)


@pytest.mark.slow
@over_random_damage(2000)
def test_much_random_damage_is_named_or_does_not_matter(
    name: str, damage: Damage, command: str, bench: Bench
) -> None:
    bench.check(name, damage, command)


@pytest.mark.parametrize("how", ["truncate", "remove"])
def test_a_damaged_result_is_named_and_made_again(how: str, bench: Bench) -> None:
    with bench.copy() as place:
        do(Damage(how), place / "run" / "evaluation.csv", place / "run")
        done = bench.do("compare", place)
        assert done.code == 1
        again = f"`ppl-vae evaluate {place / 'run'} --overwrite`"
        assert f"evaluation.csv: it {'is missing' if how == 'remove' else 'does not'}" in done.err
        assert again in done.err
        assert load_run(place / "run", results=False).evaluation is None
        with small(None), contextlib.redirect_stdout(io.StringIO()):
            assert main(["evaluate", str(place / "run"), "--overwrite", "--num_samples", "5"]) == 0
        assert bench.do("compare", place).code == 0


@pytest.mark.parametrize(
    ("option", "value", "command"),
    [
        ("seed", "many", "evaluate"),
        ("data", "[1, 2]", "evaluate"),
        ("max_rows", "few", "resume"),
        ("num_samples", "{}", "resume"),
        ("objective", "5", "diagnose"),
        ("model", "{class_path: 5}", "load_run"),
        ("guide", "[]", "refit"),
    ],
)
def test_an_option_of_a_wrong_type_is_named_with_its_file(
    option: str, value: str, command: str, bench: Bench
) -> None:
    with bench.copy() as place:
        file = place / "run" / "config.yaml"
        config = yaml.safe_load(file.read_text())
        file.write_text(yaml.safe_dump({**config, option: yaml.safe_load(value)}))
        done = bench.do(command, place)
    assert done.code == 1
    (line,) = done.err.splitlines()
    assert "run/config.yaml" in line
    assert option in line
    assert not RAW.search(line)
