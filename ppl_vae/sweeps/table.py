"""What a sweep has found: a row for each run, and means over seeds for each point."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ppl_vae.pairs import AT_POINT, ELBO_MEASURE
from ppl_vae.runs import DIAGNOSIS, EVALUATION, read_result
from ppl_vae.runtime import CorruptFileError
from ppl_vae.stats import Estimate
from ppl_vae.sweeps.folder import SweepFolder
from ppl_vae.sweeps.spec import SEED, SweepRun, as_text, identity

METRICS = {
    ELBO_MEASURE.name: ELBO_MEASURE.text,
    AT_POINT.name: AT_POINT.text,
    "log_likelihood": "log p(x)",
    "rate": "rate",
    "distortion": "distortion",
    "active_units": "active units",
    "mutual_information": "mutual information",
    "unreliable": "unreliable",
    "seconds": "seconds",
}
"""What is told of each run, and what it is called: nats per row, a count, a share of the rows, seconds. A run
whose guide gives points has log p(x, z), and neither ELBO nor rate: those cells are empty."""

_OF_EVALUATION = (ELBO_MEASURE.name, AT_POINT.name, "log_likelihood", "rate", "distortion")
"""Those that evaluation.json holds; what a run does not have is not there."""


@dataclass(frozen=True)
class SweptPoint:
    """A point of a sweep: what its runs, which differ in the seed alone, have found.

    Attributes:
        varied: Its options, without the seed.
        values: For each of `METRICS` the values of the runs that have ended well, by seed.
        runs: How many runs it has, with those that have not ended well.
    """

    varied: Mapping[str, Any]
    values: Mapping[str, Sequence[float]]
    runs: int

    def estimate(self, metric: str) -> Estimate:
        """Mean and standard error over seeds; NaN if there is no number.

        Args:
            metric: One of `METRICS`.
        """
        found = [value for value in self.values[metric] if math.isfinite(value)]
        return Estimate(torch.tensor(found or [math.nan], dtype=torch.float64))

    @property
    def rate(self) -> Estimate:
        """The rate, so that a point can be drawn by `rate_distortion`."""
        return self.estimate("rate")

    @property
    def distortion(self) -> Estimate:
        """The distortion, likewise."""
        return self.estimate("distortion")

    def short(self, names: Iterable[str]) -> str:
        """Some of its options, in short.

        Args:
            names: Which.

        Example:
            >>> point = SweptPoint({"objective.beta": 2, "guide": "my.Guide"}, {}, 1)
            >>> point.short(["guide", "objective.beta"])
            'guide Guide, beta 2'
        """
        there = [name for name in names if name in self.varied]
        texts = [as_text(self.varied[name]) for name in there]
        values = [
            text.rpartition(".")[2] if isinstance(self.varied[name], str) else text
            for name, text in zip(there, texts, strict=True)
        ]
        return ", ".join(f"{a} {b}" for a, b in zip(_short(there), values, strict=True))


@dataclass(frozen=True)
class SweepTable:
    """The table of a sweep.

    Attributes:
        rows: One for each run: its name, what varies, seed, state, `METRICS`, and the error of one that failed.
        points: What they say of each point.
        unread: Why results of some runs cannot be read; their numbers are NaN.

    Example:
        >>> points = [SweptPoint({"beta": 1}, {name: [1.0, 3.0] for name in METRICS}, 2)]
        >>> print(SweepTable([], points).to_markdown().splitlines()[2][:34])
        | 1    | 2     | 2.00 ± 1.00 | 2.0
    """

    rows: Sequence[Mapping[str, Any]]
    points: Sequence[SweptPoint]
    unread: Sequence[str] = ()

    @classmethod
    def of(cls, folder: SweepFolder, runs: Sequence[SweepRun]) -> SweepTable:
        """Reads the results of the runs that are there.

        Args:
            folder: The folder of the sweep.
            runs: The runs, those of a point in any order.
        """
        names = dict.fromkeys(name for run in runs for name in run.varied)
        unread: list[str] = []
        rows = [_row(folder, run, names, unread) for run in runs]
        members: dict[str, list[int]] = {}
        for i, run in enumerate(runs):
            members.setdefault(identity(run.varied), []).append(i)
        points = []
        for place in members.values():
            done = [rows[i] for i in place if rows[i]["state"] == "done"]
            values = {name: [row[name] for row in done] for name in METRICS}
            points.append(SweptPoint(runs[place[0]].varied, values, len(place)))
        return cls(rows, points, unread)

    @property
    def varying(self) -> list[str]:
        """The options that have more than one value, without the seed."""
        names = dict.fromkeys(name for point in self.points for name in point.varied)
        return [n for n in names if len({identity({n: p.varied.get(n)}) for p in self.points}) > 1]

    @property
    def metrics(self) -> dict[str, str]:
        """Those of `METRICS` that are told, and what they are called: log p(x, z) only where a run has it."""
        found = (value for point in self.points for value in point.values[AT_POINT.name])
        has = any(map(math.isfinite, found))
        return {name: text for name, text in METRICS.items() if has or name != AT_POINT.name}

    def axis(self) -> str | None:
        """The option against which the metrics can be drawn: the only one whose values are numbers."""
        numbers = [n for n in self.varying if all(_is_number(p.varied.get(n)) for p in self.points)]
        return numbers[0] if len(numbers) == 1 else None

    def series(self, axis: str | None) -> dict[str, list[SweptPoint]]:
        """Points with results, by what varies beside an axis, in the order of its numbers.

        Args:
            axis: One of `varying`, or None.
        """
        found: dict[str, list[SweptPoint]] = {}
        others = [name for name in self.varying if name != axis]
        for point in self.points:
            if point.values["elbo"]:
                found.setdefault(point.short(others) if axis else "", []).append(point)
        if axis is not None:
            for members in found.values():
                members.sort(key=lambda point: float(point.varied[axis]))
        return found

    def to_markdown(self) -> str:
        """The points as a table in Markdown: mean ± standard error over seeds."""
        names = list(dict.fromkeys(name for point in self.points for name in point.varied))
        head = [*_short(names), "seeds", *self.metrics.values()]
        body = [
            [
                *(_cell(point.varied[name]) if name in point.varied else "" for name in names),
                _seeds(point),
                *(_numbers(point.estimate(name), name) for name in self.metrics),
            ]
            for point in self.points
        ]
        widths = [max(len(row[i]) for row in (head, *body)) for i in range(len(head))]
        lines = [_line(head, widths), "| " + " | ".join("-" * w for w in widths) + " |"]
        return "\n".join([*lines, *(_line(row, widths) for row in body)])

    def to_csv(self) -> str:
        """The runs as comma-separated values, all digits of each number."""
        left_out = METRICS.keys() - self.metrics.keys()
        columns = list(dict.fromkeys(n for row in self.rows for n in row if n not in left_out))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            writer.writerow({name: _of_csv(row[name]) for name in columns if name in row})
        return text.getvalue()


def _row(
    folder: SweepFolder, run: SweepRun, names: Iterable[str], unread: list[str]
) -> dict[str, Any]:
    state = folder.state(run)
    row: dict[str, Any] = {"run": folder.of(run).name}
    row |= {name: run.varied.get(name, "") for name in names}
    row |= {SEED: run.seed, "state": state}
    row |= dict.fromkeys(METRICS, math.nan)
    row["seconds"] = folder.seconds(run) if state != "missing" else math.nan
    row["error"] = folder.error(run) if state == "failed" else ""
    if state == "done":
        row |= _results(folder, run, unread)
    return row


def _result(folder: SweepFolder, run: SweepRun, name: str, unread: list[str]) -> dict[str, Any]:
    """A result of a run; empty if there is none, or if it cannot be read, which is added to `unread`."""
    try:
        return read_result(folder.of(run) / name) or {}
    except (OSError, CorruptFileError) as error:
        unread.append(str(error))
        return {}


def _results(folder: SweepFolder, run: SweepRun, unread: list[str]) -> dict[str, float]:
    evaluation = _result(folder, run, EVALUATION, unread)
    diagnosis = _result(folder, run, DIAGNOSIS, unread)
    found = {name: _mean(evaluation.get(name)) for name in _OF_EVALUATION}
    found["active_units"] = _as_number(diagnosis.get("active_units"))
    found["mutual_information"] = _mean(diagnosis.get("mutual_information"))
    unreliable = evaluation.get("unreliable")
    count = unreliable.get("count") if isinstance(unreliable, dict) else None
    rows = _as_number(evaluation.get("num_rows"))
    found["unreliable"] = _as_number(count) / rows if rows > 0 else math.nan
    return found


def _mean(found: object) -> float:
    return _as_number(found.get("mean")) if isinstance(found, dict) else math.nan


def _as_number(found: object) -> float:
    try:
        return float(found) if _is_number(found) and isinstance(found, int | float) else math.nan
    except OverflowError:  # a whole number of hundreds of digits
        return math.nan


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(names: Sequence[str]) -> list[str]:
    last = [name.rpartition(".")[2] for name in names]
    return [
        short if last.count(short) == 1 else name for short, name in zip(last, names, strict=True)
    ]


def _cell(value: Any) -> str:
    return as_text(value).replace("|", "\\|").replace("\n", " ")


def _seeds(point: SweptPoint) -> str:
    done = len(point.values["elbo"])
    return str(done) if done == point.runs else f"{done} of {point.runs}"


def _numbers(estimate: Estimate, metric: str) -> str:
    if math.isnan(estimate.mean):
        return "-"
    if metric == "unreliable":
        return f"{Estimate(100 * estimate.values).numbers('.1f')} %"
    return estimate.numbers(".1f" if metric in ("active_units", "seconds") else ".2f")


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(f"{cell:{w}}" for cell, w in zip(cells, widths, strict=True)) + " |"


def _of_csv(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else repr(value)
    return as_text(value)


def wrong_entropy(entropy: float | None, table: SweepTable) -> str:
    """Why an entropy cannot be that of the data; empty if it can: no ELBO is above -H but by the noise of rows.

    Args:
        entropy: What a description gives for H, nats per row.
        table: What its runs have found.
    """
    if entropy is None:
        return ""
    names = table.varying
    for point in table.points:
        elbo = -(point.rate.mean + point.distortion.mean)
        if elbo > -entropy + max(0.5, 0.02 * abs(entropy)):
            return (
                f"picture: entropy is {entropy:g}, so that no ELBO is above {-entropy:g}, and that of "
                f"{point.short(names)} is {elbo:.2f}: H - D is not drawn; give the entropy of these data in "
                "nats per row, or an entropy_bound"
            )
    return ""
