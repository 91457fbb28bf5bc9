"""Every benchmark in analyses/ runs with a tiny setting, and what it prints makes sense."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from scripts import ROOT, mean, rows, run_alone

BENCHMARKS = ROOT / "analyses" / "benchmarks"


def training(folder: Path) -> None:
    few = (
        "--batch_sizes=[512]",
        "--convolutional=false",
        "--peers=false",
        "--rounds=1",
        "--threads=1",
    )
    # Without those that compile: they take half a minute.
    who = ("hand-fused", "ours", "numpyro", "floor")
    arguments = ("--steps=2", "--warm_up=2", f"--contenders=[{','.join(who)}]")
    printed = run_alone(str(BENCHMARKS / "training.py"), *few, *arguments, cwd=folder)
    table = {row[""]: row for row in rows(printed)}
    assert len(table) == 3  # NumPyro is a peer
    assert float(table["fit, as it is"]["`fit` takes, of it"]) == 1.0
    for row in table.values():
        assert mean(row["ms per step"]) > 0
        assert mean(row["s to the first step"]) >= 0


def evaluation(folder: Path) -> None:
    sizes = ("--num_samples=200", "--rows=8", "--few_rows=8", "--rounds=1", "--large=128")
    who = ("--peers=false", "--contenders=[hand,ours]", "--threads=1")
    printed = run_alone(str(BENCHMARKS / "evaluation.py"), *sizes, *who, cwd=folder)
    table = {row[""]: row for row in rows(printed)}
    # Both estimate the same: the weights are those of an untrained decoder, nearly constant.
    by_hand, ours = (mean(table[n]["log p(x)"]) for n in ("torch by hand", "evaluate, recorded"))
    assert ours == pytest.approx(by_hand, abs=1.5)
    # Operations per second are those of 2 K (50 x 400 + 400 x 784) per row, in the time that is printed.
    for name in ("evaluate, first call", "evaluate, of twice the rows"):
        count, seconds = int(table[name]["rows"]), mean(table[name]["s"])
        operations = 2 * count * 200 * (50 * 400 + 400 * 784) / 1e9
        found = mean(table[name]["GFLOP/s of its products"])
        assert found == pytest.approx(operations / seconds, abs=0.6, rel=0.1)
    assert mean(table["the best product, 128 x 128"]["of the best product"]) == 1.0


def em(folder: Path) -> None:
    sizes = ("--rows=2000", "--iterations=2", "--repeats=1")
    table = rows(run_alone(str(BENCHMARKS / "em.py"), *sizes, cwd=folder))
    assert len(table) >= 8
    for row in table:  # the fits that are timed are equal
        assert abs(float(row["difference of log p(x)"])) < 1e-4, row


def live(folder: Path) -> None:
    few = ("--digits_epochs=2", "--mnist_epochs=1", "--rounds=1")
    found = rows(run_alone(str(BENCHMARKS / "live.py"), *few, cwd=folder))
    assert [row["rows"] for row in found] == 8 * ["digits"] + ["like MNIST"]
    for row in found:
        share = float(row["of the time"].rstrip("%")) / 100
        spent = mean(row["ms for the dimensions"]) / mean(row["ms per epoch"])
        assert share == pytest.approx(spent, rel=0.1, abs=1e-3)


def coding(folder: Path) -> None:
    few = ("--rows=30", "--hidden=[16]", "--latents=4", "--photos=[[40,24],[80,48]]")
    small = ("--channels=8", "--prior_channels=8", "--rounds=1")
    printed = run_alone(str(BENCHMARKS / "coding.py"), *few, *small, cwd=folder)
    assert printed.splitlines()[0].endswith(f"1 thread(s), torch {torch.__version__}")
    table = rows(printed)
    names = ["30 rows, bits-back", "40 x 24", "80 x 48"]
    assert [row["file of"] for row in table] == [name for name in names for _ in range(2)]
    assert [row["call"] for row in table] == 3 * ["write", "read"]
    # Each pixel is a number, and each latent two; of photos each 4 x 4 pixels.
    counts = [int(row["numbers"]) for row in table[::2]]
    assert counts[0] >= 30 * (784 + 2 * 4)
    assert counts[1:] == [40 * 24 // 16, 80 * 48 // 16]
    for row in table:
        pictures = 30 if "rows" in row["file of"] else 1
        seconds = mean(row["s"])
        assert mean(row["pictures per second"]) == pytest.approx(pictures / seconds, rel=0.05)
        parts = [mean(row[name]) for name in ("in layers", "tables and the rest", "in the coder")]
        assert sum(parts) == pytest.approx(seconds, abs=0.003)
        assert min(parts[:2]) > 0
        share = mean(row["constriction alone"]) / seconds
        assert mean(row["constriction, of s"]) == pytest.approx(share, abs=0.02)


def colorize(folder: Path) -> None:
    network = ("--widths=[4,8]", "--segments=3", "--kinds=[Palette]", "--contenders=[hand,fit]")
    training = ("--patch=16", "--batch_size=4", "--steps=2", "--warm_up=1", "--rounds=1")
    applying = ("--photo=[40,30]", "--sizes=[[90,60],[900,600]]", "--most_gib=0", "--threads=1")
    path = str(BENCHMARKS / "colorize.py")
    printed = run_alone(path, *network, *training, *applying, cwd=folder)
    # A RuntimeError would say that the contenders do not compute the same.
    trained, applied, memory = (rows("|" + part) for part in printed.split("\n\n|")[1:])
    assert [float(row["`fit` takes, of its time"]) for row in trained][1] == 1.0
    assert trained[0]["loss, nats per pixel"][:5] == trained[1]["loss, nats per pixel"][:5]
    assert all(mean(row["photos per second"]) > 0 for row in applied)
    assert [row["photo"] for row in memory] == ["90 x 60", "900 x 600"]
    assert memory[1]["torch by hand, without tiles"].startswith("left out")


def translation(folder: Path) -> None:
    few = ("--size=60", "--vocabulary=300", "--batch_size=20", "--rounds=1")
    small = ("--width=16", "--layers=1", "--heads=2")
    # A RuntimeError would say that torch's own transformer and the library's network are not the same.
    table = rows(run_alone(str(BENCHMARKS / "translation.py"), *few, *small, cwd=folder))
    assert [float(row["`fit` takes, of its time"]) for row in table][-1] == 1.0
    assert len({row["first loss, nats per row"][:5] for row in table}) == 1
    assert all(mean(row["sentences per second"]) > 0 for row in table)


class Fake:
    """A contender whose turns take as many seconds as it is told, and which tells of what it is asked."""

    def __init__(self, name: str, seconds: list[float], asked: list[tuple[str, int]]) -> None:
        self.name, self.seconds, self.asked = name, iter(seconds), asked

    def ask(self, number: int) -> float:
        self.asked.append((self.name, number))
        return next(self.seconds)

    def stop(self) -> None:
        self.asked.append((self.name, 0))


def test_contenders_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each comes first in a third of the rounds, after a pause; a slow turn does not move its median."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    workers = importlib.import_module("workers")
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    asked: list[tuple[str, int]] = []
    times = {"a": [1.0, 9.0, 2.0, 2.5], "b": [3.0] * 4, "c": [5.0, 4.0, 4.0, 5.0]}
    counts = {"a": 7, "b": 8, "c": 9}
    with workers.running() as contenders:
        contenders += [Fake(name, seconds, asked) for name, seconds in times.items()]
        found = workers.median_seconds(contenders, counts, 4)
    assert found == {"a": 2.25, "b": 3.0, "c": 4.5}
    assert pauses == [workers.PAUSE] * 12
    order = [(name, counts[name]) for turn in ("abc", "bca", "cab", "abc") for name in turn]
    assert asked == [*order, ("a", 0), ("b", 0), ("c", 0)]


def test_contenders_are_stopped_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    workers = importlib.import_module("workers")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    asked: list[tuple[str, int]] = []

    def fail() -> None:
        with workers.running() as contenders:
            contenders.extend([Fake("a", [1.0], asked), Fake("b", [], asked)])
            workers.median_seconds(contenders, {"a": 7, "b": 8}, 1)

    with pytest.raises(StopIteration):
        fail()
    assert asked == [("a", 7), ("b", 8), ("a", 0), ("b", 0)]


SLOW = [
    pytest.param(check, marks=pytest.mark.slow)
    for check in (training, evaluation, live, colorize, em, translation)
]


@pytest.mark.slow
@pytest.mark.parametrize("check", [*SLOW, coding])
def test_benchmark(check: Callable[[Path], None], tmp_path: Path) -> None:
    check(tmp_path)
