"""Runs that were evaluated on the same rows, compared row by row."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ppl_vae.pairs import ELBO_MEASURE, measure_of_result
from ppl_vae.runs.contents import DIAGNOSIS, EVALUATION
from ppl_vae.runs.run import Run
from ppl_vae.runtime import CorruptFileError, as_typed, described
from ppl_vae.stats import Estimate, Result

_QUANTITIES = dict.fromkeys(("elbo", "rate", "distortion", "log_likelihood"))
"""What is compared row by row."""

_OF_BOUND = ("elbo", "rate")
"""Of these, what is not defined where the guide gives points, or p(z) is improper."""

_AGAIN = "create it again (`ppl-vae evaluate`, `ppl-vae diagnose`, with --overwrite)"

_ESTIMATE = {"mean": None, "standard_error": None}

_OF_EVALUATION = {"rows": dict.fromkeys(("name", "num", "sha256")), "num_samples": None}
"""What evaluation.json must hold, beside its numbers."""


@dataclass(frozen=True)
class Comparison(Result):
    """Runs that were evaluated on the same rows, and their differences from the first of them.

    Attributes:
        names: Names of the runs.
        evaluations: Contents of their evaluation.json files.
        values: The per-row values of their evaluations.
        active_units: Active units of each run, or how many of its codes are used; "-" where it was not
            diagnosed.
    """

    names: tuple[str, ...]
    evaluations: tuple[Mapping[str, Any], ...]
    values: tuple[Mapping[str, Sequence[float]], ...]
    active_units: tuple[str, ...]

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Comparison:
        """Checks that the runs can be compared.

        Raises:
            TypeError: They are no list, or one of them is no run.
            ValueError: There are none; a run was not evaluated, or was evaluated on other rows than the first.
            CorruptFileError: A result lacks what it should hold.
        """
        expected = "runs must be a list of what load_run has returned"
        if isinstance(runs, str | Run) or not isinstance(runs, Iterable):
            raise TypeError(f"{expected}, got {described(runs)}: write Comparison.of([run, other])")
        runs = list(runs)
        if not runs:
            raise ValueError(f"{expected}, got an empty one: there is nothing to compare")
        evaluations, values, active = [], [], []
        for run in runs:
            if not isinstance(run, Run):
                raise TypeError(f"runs must be what load_run has returned, got {described(run)}")
            evaluation = run.evaluation
            if evaluation is None:
                raise _cannot(run, "holds no evaluation")
            if run.evaluation_rows is None:
                raise _cannot(run, "has no per-row values (its evaluation was a summary)")
            if "rows" not in evaluation:
                raise _cannot(run, "does not record which rows were evaluated")
            own_names = measure_of_result(evaluation).columns
            needed = dict.fromkeys((*own_names, "distortion", "log_likelihood"))
            numbers = dict.fromkeys((*needed, "bits_per_dim"), _ESTIMATE)
            _require(run.path / EVALUATION, evaluation, _OF_EVALUATION | numbers)
            _require(run.path / EVALUATION, run.evaluation_rows, needed)
            evaluations.append(evaluation)
            values.append(run.evaluation_rows)
            if run.diagnosis is not None:
                _require(run.path / DIAGNOSIS, run.diagnosis, {"active_units": None})
            active.append("-" if run.diagnosis is None else _in_use(run.diagnosis))
        for run, evaluation in zip(runs, evaluations, strict=True):
            own, first = evaluation["rows"], evaluations[0]["rows"]
            if own["sha256"] != first["sha256"]:
                _require_same_labels(run, runs[0])
                raise ValueError(
                    f"{run.path} was evaluated on other rows than {runs[0].path} ({own['num']} of "
                    f"{own['name']} against {first['num']} of {first['name']}; the content differs): only runs "
                    "on the same data, with the same binarization, can be compared row by row"
                )
        return cls(
            tuple(_short_names([run.path for run in runs])),
            tuple(evaluations),
            tuple(values),
            tuple(active),
        )

    def difference(self, quantity: str, run: int) -> Estimate:
        """A run's quantity minus the first run's, row by row: its error is that of paired rows.

        ELBO and rate are not defined if the guide of one of them gives points, as log p(x, z) there is no
        bound, or if p(z) of one is improper.
        """
        if quantity in _OF_BOUND and any(map(_has_no_bound, self._both(run))):
            n = len(self.values[0]["distortion"])
            return Estimate(torch.full((n,), math.nan).double(), missing="not defined")
        own, first = (torch.tensor(self.values[i][quantity], dtype=torch.float64) for i in (run, 0))
        return Estimate(own - first)

    def lack(self, quantity: str, run: int) -> str:
        """Why there is no difference of a quantity, in two words; empty if there is one."""
        if not math.isnan(self.difference(quantity, run).mean):
            return ""
        bound = quantity == "log_likelihood" and any(map(_is_bound, self._both(run)))
        return "not known" if bound else "not defined"

    def _both(self, run: int) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        return self.evaluations[run], self.evaluations[0]

    def summary_numbers(self) -> dict[str, Any]:
        """Below `runs` by their names, means, differences and standard errors of each run."""
        result: dict[str, Any] = {}
        for i, name in enumerate(self.names):
            result[name] = {}
            for quantity in _QUANTITIES:
                difference, found = self.difference(quantity, i), self.evaluations[i]
                if quantity in _OF_BOUND and _has_no_bound(found):
                    found = {quantity: dict.fromkeys(_ESTIMATE, math.nan)}
                result[name][quantity] = {
                    "mean": found[quantity]["mean"],
                    "standard_error": found[quantity]["standard_error"],
                    "difference": difference.mean,
                    "difference_standard_error": difference.standard_error,
                }
        return {"runs": result}

    def __repr__(self) -> str:
        return f"Comparison({len(self.names)} run{'' if len(self.names) == 1 else 's'})"

    def table(self) -> list[list[str]]:
        """One line per run."""
        tokens = [each.get("counted") == "token" for each in self.evaluations]  # of sentences
        bits = "bits/token" if all(tokens) else "bits/dim"
        head = ["run", "ELBO", "rate", "distortion", "log p(x)", "unreliable", bits, "active"]
        head += ["Δ ELBO", "Δ log p(x)"]
        rows = [head]
        for i, (name, e) in enumerate(zip(self.names, self.evaluations, strict=True)):
            row = [name]
            for quantity in (*_QUANTITIES, "bits_per_dim"):
                other = quantity == "bits_per_dim" and tokens[i] and not all(tokens)
                row.append(_in_words(e, quantity) + other * " per token")
                if quantity == "log_likelihood":
                    row.append(self._unreliable(i))
            row.append(self.active_units[i])
            for quantity in ("elbo", "log_likelihood"):
                d = self.difference(quantity, i)
                there = self.lack(quantity, i) or d.numbers("+.2f")
                row.append("-" if i == 0 else there)
            rows.append(row)
        return rows

    def _unreliable(self, run: int) -> str:
        """The share of rows whose log p(x) is not to be trusted; "-" if none is claimed, or for older runs."""
        rows = self.values[run].get("unreliable")
        known = self.evaluations[run]
        claimed = not (known.get("certain", False) or _has_no_bound(known))
        return "-" if rows is None or not claimed else f"{sum(map(bool, rows)) / len(rows):.1%}"

    def lines(self) -> list[tuple[str, str]]:
        """Nothing: all numbers are in the table."""
        return []

    def doubts(self) -> Iterator[str]:
        """That quantities differ; what evaluations warn of that have no log p(x) for some of the rows."""
        kinds = [_condition(evaluation) for evaluation in self.evaluations]
        if len({kind for kind, _ in kinds}) > 1:
            each = ", ".join(
                f"{name}: {text}" for name, (_, text) in zip(self.names, kinds, strict=True)
            )
            yield f"the runs have log p(x) of different quantities, which cannot be compared: {each}"
        for name, evaluation in zip(self.names, self.evaluations, strict=True):
            if math.isnan(evaluation["log_likelihood"]["mean"]):
                yield from (f"{name}: {text}" for text in evaluation.get("warnings", ()))

    def caption(self) -> list[str]:
        """What the numbers in the table are."""
        n = len(self.values[0]["distortion"])
        kinds: dict[str, list[str]] = {}
        samples = set()
        for name, e, rows in zip(self.names, self.evaluations, self.values, strict=True):
            # Equal draws of a discrete latent have no error, but are no sum over all of its values.
            drawn = any(rows.get("log_likelihood_error", [1.0])) or any(rows.get("unreliable", ()))
            kind = "drawn" if drawn else "exact"
            kind = "at least the ELBO" if _is_bound(e) else kind
            kind = "not defined" if _has_no_bound(e) else kind
            kinds.setdefault(kind, []).append(name)
            samples |= {e["num_samples"]} if kind == "drawn" else set()
        numbers = " / ".join(map(str, sorted(samples)))
        told = {"drawn": f"by importance sampling with {numbers} samples"}
        first, *others = sorted(
            kinds, key=["drawn", "exact", "at least the ELBO", "not defined"].index
        )
        how = told.get(first, first)
        how += "".join(f", {kind} for {', '.join(kinds[kind])}" for kind in others)
        return [
            f"nats per row, {n} row{'' if n == 1 else 's'}, log p(x) {how}; Δ: difference from "
            f"{self.names[0]} and its standard error from paired rows"
        ]


def _has_no_bound(evaluation: Mapping[str, Any]) -> bool:
    """Whether there is no ELBO: log p(x, z) at a point is no bound."""
    return measure_of_result(evaluation) is not ELBO_MEASURE


def _is_bound(evaluation: Mapping[str, Any]) -> bool:
    """Whether of log p(x) only the ELBO is known, as the guide puts all of its mass on one value."""
    unknown = math.isnan(evaluation["log_likelihood"]["mean"])
    return bool(evaluation.get("certain", False)) and unknown


def _in_words(evaluation: Mapping[str, Any], quantity: str) -> str:
    """The mean of a quantity; where it is known from one side alone, that."""
    if quantity in _OF_BOUND and _has_no_bound(evaluation):
        return "not defined"
    mean, digits = evaluation[quantity]["mean"], 4 if quantity == "bits_per_dim" else 2
    if not math.isnan(mean):
        return f"{mean:.{digits}f}"
    size = evaluation.get("num_values")
    if not _is_bound(evaluation) or (quantity == "bits_per_dim" and not size):
        return "not defined"
    elbo = evaluation["elbo"]["mean"]
    if quantity != "log_likelihood" and isinstance(size, Mapping):  # rows differ in their numbers
        return "not known"
    if quantity == "log_likelihood":
        return f"≥ {elbo:.2f}"
    return f"≤ {-elbo / math.log(2) / float(size or 1):.4f}"


def _in_use(diagnosis: Mapping[str, Any]) -> str:
    """How many latent dimensions are active; of codes, how many are used."""
    books = diagnosis.get("of_codes")
    if isinstance(books, Sequence) and books and all(isinstance(book, Mapping) for book in books):
        used, values = (
            sum(int(book.get(name, 0)) for book in books) for name in ("used", "values")
        )
        return f"{used:,} of {values:,} codes"
    return str(diagnosis["active_units"])


def _condition(evaluation: Mapping[str, Any]) -> tuple[str, str]:
    """What log p(x) of an evaluation is, by its notes: its kind, and in full."""
    for note in evaluation.get("notes", ()):
        if found := re.search(r"log p\(x\) is (log p\(x( \||,)[^)]*\)(.*))", str(note)):
            return found[2] + found[3], found[1]
    return "", "log p(x)"


def _require(file: Path, content: Mapping[str, Any], keys: Mapping[str, Any]) -> None:
    """Raises an error for a result that lacks what it should hold, at any depth.

    Raises:
        CorruptFileError: A key is missing, or what it holds is of another kind.
    """
    for key, inner in keys.items():
        if key not in content:
            raise CorruptFileError(file, f"it holds no '{key}'; {_AGAIN}")
        if isinstance(inner, Mapping):
            if not isinstance(content[key], Mapping):
                raise CorruptFileError(file, f"'{key}' is not what it should be; {_AGAIN}")
            _require(file, content[key], inner)


def _require_same_labels(run: Run, first: Run) -> None:
    """Explains why runs cannot be compared of which one is given labels.

    Raises:
        ValueError: That is so.
    """
    own, other = (one.config.get("labels", False) for one in (run, first))
    if type(own) is not type(other) or own != other:
        said = ["none" if not each else f"--labels {str(each).lower()}" for each in (own, other)]
        raise ValueError(
            f"{run.path} and {first.path} are given different labels beside the rows ({said[0]}, {said[1]}), "
            "on which their log p(x) depends: only runs with the same --labels can be compared row by row, or "
            "those of whose test rows no label is told (--labels N)"
        )


def _cannot(run: Run, lack: str) -> ValueError:
    if "data" in run.config:  # ppl-vae train made it
        remedy = f"run `ppl-vae evaluate {as_typed(run.path)} --overwrite`"
    else:
        remedy = "save it again with save_run(..., evaluation=evaluate(model, guide, x), rows=x)"
    return ValueError(f"{run.path} {lack}, so it cannot be compared: {remedy}")


def _short_names(paths: Sequence[Path]) -> list[str]:
    """The folders' names, or their whole paths if two names are the same."""
    names = [path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]
