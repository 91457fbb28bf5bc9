"""The files of a run folder."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import math
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO, runtime_checkable

import pyro
import torch
import yaml
from torch import Tensor

from ppl_vae._version import __version__
from ppl_vae.pairs import ELBO_MEASURE, as_tensor, measure_of_result
from ppl_vae.runs.contents import (
    ANNEALED,
    COLORS,
    CONFIG,
    DIAGNOSIS,
    EVALUATION,
    FIT,
    GAPS,
    METRICS,
    POSTERIOR,
    PROBE,
    REPORT,
    SAMPLES,
    has_checkpoints,
    pictures,
)
from ppl_vae.runs.location import config_file
from ppl_vae.runs.netcdf import WEIGHTS_KEY, as_netcdf, names_weights
from ppl_vae.runtime import (
    HIDDEN,
    MOST_YAML,
    CorruptFileError,
    as_typed,
    described,
    digest,
    load_json,
    load_yaml,
    read_text,
    write_bytes,
)

_MAKERS = {
    FIT: "ppl-vae em",
    EVALUATION: "ppl-vae evaluate",
    ANNEALED: "ppl-vae evaluate --method ais",
    GAPS: "ppl-vae gaps",
    COLORS: "ppl-vae colorize evaluate",
    PROBE: "ppl-vae probe",
    DIAGNOSIS: "ppl-vae diagnose",
    POSTERIOR: "ppl-vae export",
    SAMPLES: "ppl-vae sample",
    REPORT: "ppl-vae report",
}
"""The commands that make results."""

MADE_BY = "made_by"
"""Entry of config.yaml: the command that made the run."""

_MAKERS_OF_RUNS = ("train", "refit", "refit-prior", "em", "colorize train")

_DIGEST = "table_sha256"
"""Key in a result's file: the digest of the table beside it."""

_WEIGHTS = WEIGHTS_KEY
"""Key in a result's file: the digest of the weights that it belongs to. Earlier versions wrote none."""

_MOST_JSON = 2**23
"""Largest size of a result in bytes; a summary takes some thousand, older ones hold all rows."""

_MOST_CSV = 2**28
"""Largest size of a table in bytes."""

_MOST_LINES = 2_000_000
"""Most lines of a table: each takes some hundred bytes of memory, however short it is."""

_LONGEST_ROW = 2**20
"""Most characters in a row of a table: it is split as a whole."""

_MOST_VALUES = 2**24
"""Most numbers in a table: each takes some dozens of bytes of memory, and as little as two in the file."""

_AGAIN = "remove it, or create it again with --overwrite"
"""What to do about a result that cannot be read."""

_OF_NAMES = ("method",)
"""Columns of tables that hold names, and no numbers."""

_LONGEST_NAME = 40

_OF_ESTIMATE = ("mean", "standard_error")


class Summary(Protocol):
    """A result that can be written into a run, such as that of `diagnose`."""

    def to_dict(self) -> dict[str, Any]:
        """A summary for people to read, as plain numbers."""


@runtime_checkable
class Table(Summary, Protocol):
    """A result that also has per-row values, such as that of `evaluate`."""

    def rows(self) -> Mapping[str, Tensor]:
        """Per-row values by name, `(n,)` each."""


def write_config(path: Path, config: Mapping[str, Any]) -> None:
    """Writes config.yaml, with the versions that a result may depend on."""
    try:
        text = yaml.safe_dump({**config, "versions": versions()}, sort_keys=False)
    except yaml.representer.RepresenterError as error:
        raise TypeError(
            "config must hold plain values (texts, numbers, True, None, and lists and dicts of them), got "
            f"{described(error.args[-1])}"
        ) from error
    write_bytes(path / CONFIG, text.encode())


def read_config(path: Path) -> dict[str, Any]:
    """Reads config.yaml.

    Raises:
        FileNotFoundError: No such folder, or no run in it.
        CorruptFileError: The file is not a configuration of a run.
    """
    file = config_file(path)
    try:
        config = load_yaml(read_text(file, MOST_YAML))
    except ValueError as error:
        raise CorruptFileError(file, f"this is not YAML that can be read ({error})") from error
    if not isinstance(config, dict):
        raise CorruptFileError(
            file, "this is not the configuration of a run: expected `name: value` lines"
        )
    return config


def versions() -> dict[str, str]:
    """The versions that a result may depend on."""
    return {
        "ppl_vae": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "pyro": pyro.__version__,
    }


def write_results(
    path: Path,
    *,
    fit: Mapping[str, Any] | None = None,
    evaluation: Summary | Mapping[str, Any] | None = None,
    diagnosis: Summary | Mapping[str, Any] | None = None,
    annealed: Summary | Mapping[str, Any] | None = None,
    gaps: Summary | Mapping[str, Any] | None = None,
    colors: Summary | Mapping[str, Any] | None = None,
    probe: Summary | Mapping[str, Any] | None = None,
    arviz: Any = None,
    rows: Mapping[str, Any] | None = None,
    weights: str | None = None,
) -> None:
    """Writes each given result to a file of its name, and its per-row values to a table beside it.

    Args:
        path: The run's folder.
        fit: For fit.json: notes and warnings of the fit, which stay if the run is evaluated again.
        evaluation: For evaluation.json, which people read, and evaluation.csv, one line per row.
        diagnosis: For diagnosis.json.
        annealed: For annealed.json and annealed.csv.
        gaps: For gaps.json and gaps.csv.
        colors: For colors.json and colors.csv.
        probe: For probe.json and probe.csv.
        arviz: For posterior.nc.
        rows: Which rows the results belong to; written into the file of each result that has a table.
        weights: The digest of the weights that the results belong to; written into each file. None if it is not
            known.
    """
    results = {
        FIT: fit,
        EVALUATION: evaluation,
        DIAGNOSIS: diagnosis,
        ANNEALED: annealed,
        GAPS: gaps,
        COLORS: colors,
        PROBE: probe,
    }
    for name, result in results.items():
        if result is None:
            continue
        table = (path / name).with_suffix(".csv")
        plain = dict(result if isinstance(result, Mapping) else result.to_dict())
        plain.pop(_WEIGHTS, None)  # those that it was found with, perhaps in another run
        if isinstance(result, Table):
            columns = {key: _numbers(values) for key, values in result.rows().items()}
            columns |= getattr(result, "names", dict)()  # those of a `RowResult`
            lines = zip(*columns.values(), strict=True)
            content = _as_csv([dict(zip(columns, line, strict=True)) for line in lines])
            write_bytes(table, content)
            plain = plain if rows is None else {"rows": dict(rows), **plain}
            plain[_DIGEST] = hashlib.sha256(content).hexdigest()
        else:
            table.unlink(missing_ok=True)  # it would belong to another result
        if weights is not None:
            plain[_WEIGHTS] = weights
        write_bytes(path / name, _as_json(plain))
    if arviz is not None:
        write_bytes(path / POSTERIOR, as_netcdf(arviz, weights))


def describe_rows(x: Any, name: str = "rows", split: str = "") -> dict[str, Any]:
    """Describes rows: results for rows of equal content can be compared row by row.

    Args:
        x: The rows, `(n, ...)`: a tensor or an array, as `as_tensor` takes it; or a tuple of them.
        name: Their name in messages.
        split: Which part of a data set they are.

    Returns:
        The names, the number of rows, and a digest of dtype, shape and content. Labels that are all hidden (-1)
        are left out: the rows are then those of a model without labels.

    Example:
        >>> describe_rows(torch.zeros(5, 2), "zeros")["num"]
        5
    """
    first, *others = (as_tensor(part, name) for part in (x if isinstance(x, tuple) else (x,)))
    content = [first, *(part for part in others if not _all_hidden(part))]
    return {"name": name, "split": split, "num": len(content[0]), "sha256": digest(content)}


def _all_hidden(labels: Tensor) -> bool:
    whole = not labels.is_floating_point() and not labels.is_complex()
    return whole and labels.dim() == 1 and bool((labels.long() == HIDDEN).all())


def _numbers(values: Tensor) -> list[Any]:
    return values.int().tolist() if values.dtype == torch.bool else values.tolist()


def _as_json(content: Mapping[str, Any]) -> bytes:
    """One line per entry, so that a person can read it. JSON has no NaN and no infinity: they become null."""
    lines = (
        f"  {json.dumps(key)}: {json.dumps(_finite_or_none(value), allow_nan=False)}"
        for key, value in content.items()
    )
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def _finite_or_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite_or_none(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite_or_none(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _with_nan(value: Any) -> Any:
    """The numbers of a result with NaN where the file has null."""
    if isinstance(value, dict):
        return {
            key: math.nan if entry is None and key in _OF_ESTIMATE else _with_nan(entry)
            for key, entry in value.items()
        }
    if isinstance(value, list):
        return [math.nan if entry is None else entry for entry in value]
    return value


def write_history(path: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Writes metrics.csv, one line per mapping."""
    write_bytes(path / METRICS, _as_csv(history))


def _as_csv(history: Sequence[Mapping[str, Any]]) -> bytes:
    columns = list(dict.fromkeys(name for epoch in history for name in epoch))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue().encode()


def read_csv(file: Path, uneven: list[int] | None = None) -> list[dict[str, float]]:
    """The lines of a table of numbers; empty if there is no file.

    Args:
        file: The table.
        uneven: To this are added the places, counted from 0, of lines that do not have one cell for each name.

    Raises:
        CorruptFileError: It is damaged, or too large.
    """
    return _read_csv(file, _number, uneven)


def _number(name: str, cell: str) -> float:
    return float(cell)


def _number_or_name(name: str, cell: str) -> float | str:
    """The value of a cell of a result's table: a number, or a name in a column that has names."""
    if name not in _OF_NAMES:
        return float(cell)
    if not (cell.isascii() and cell.isidentifier() and len(cell) <= _LONGEST_NAME):
        raise ValueError(f"no name in column {name}")
    return cell


def _read_csv(
    file: Path, value: Callable[[str, str], Any], uneven: list[int] | None = None
) -> list[dict[str, Any]]:
    _require_no_folder(file)
    if not file.is_file():
        return []
    _require_size(file)
    fed = [0]  # characters of the row that is being read, which may go on for many lines

    def rows_of(stream: TextIO) -> Iterator[str]:
        while line := stream.readline(_LONGEST_ROW + 1):
            fed[0] += len(line)
            if fed[0] > _LONGEST_ROW:
                raise CorruptFileError(
                    file, f"a line is longer than the {_LONGEST_ROW} characters that are read"
                )
            yield line

    with file.open(newline="", encoding="utf-8") as lines:
        try:
            table = csv.reader(rows_of(lines))
            names = next(table, [])
            # Not by `csv.DictReader`: short lines under a long header would take the product of both.
            found: list[dict[str, Any]] = []
            left, fed[0] = _MOST_VALUES, 0
            for row in itertools.islice(table, _MOST_LINES):
                left -= min(len(row), len(names))
                if left < 0:
                    raise CorruptFileError(
                        file, f"it has more than the {_MOST_VALUES} numbers that are read"
                    )
                fed[0] = 0
                if row:
                    if uneven is not None and len(row) != len(names):
                        uneven.append(len(found))
                    pairs = zip(names, row, strict=False)
                    found.append({name: value(name, cell) for name, cell in pairs if cell})
            if next(table, None) is not None:
                raise CorruptFileError(
                    file, f"it has more than the {_MOST_LINES} lines that are read"
                )
            return found
        except CorruptFileError:
            raise
        except (ValueError, TypeError, csv.Error) as error:
            raise CorruptFileError(file, f"a line is not made of numbers ({error})") from error


def read_rows(path: Path, result: str = EVALUATION) -> dict[str, list[Any]] | None:
    """Per-row values of a result by name, from the table beside it; None if there are none.

    They are numbers; those of `method` are names. What is no ELBO has the name that it has today (`Measure`),
    whatever an earlier version called it.

    Older runs have no table and hold them in the JSON file itself.

    Raises:
        CorruptFileError: The table belongs to another result, or was changed.
    """
    summary = read_json(path / result)
    if summary is None:
        return None
    table = (path / result).with_suffix(".csv")
    _require_no_folder(table)
    if not table.is_file():
        if _DIGEST in summary:
            raise CorruptFileError(
                table, f"it is missing, but belongs to {result}; {_again(path, result)}"
            )
        found = {
            k: v["values"] for k, v in summary.items() if isinstance(v, dict) and "values" in v
        }
        return measure_of_result(summary).of(found) or None
    _require_size(table)
    if hashlib.sha256(table.read_bytes()).hexdigest() != summary.get(_DIGEST):
        raise CorruptFileError(
            table,
            f"it does not belong to {result}: it was changed, or a process ended between writing the two; "
            f"{_again(path, result)}",
        )
    lines = _read_csv(table, _number_or_name)
    columns = {name: [line[name] for line in lines] for name in (lines[0] if lines else {})}
    return measure_of_result(summary).of(columns)


def read_result(file: Path) -> dict[str, Any] | None:
    """A result as `to_dict()` gave it, with NaN for all that is not finite; None if there is none.

    What an earlier version called an ELBO, though it is none, has the name that it has today (`Measure`).
    """
    found = read_json(file)
    if not found:
        return found
    measure = measure_of_result(found)
    known = {n: _with_nan(value) for n, value in found.items() if n not in (_DIGEST, _WEIGHTS)}
    return known if measure is ELBO_MEASURE else {**measure.of(known), "measure": measure.name}


def evaluated_rows(path: Path) -> dict[str, Any] | None:
    """What evaluation.json says of its rows, as `describe_rows` gave it; None if it does not say which.

    It is None of a damaged file, too.
    """
    try:
        found = (read_json(path / EVALUATION) or {}).get("rows")
    except (OSError, CorruptFileError):
        return None
    return found if isinstance(found, dict) and "sha256" in found else None


def results_of_other_weights(
    path: Path, weights: str, results: Iterable[str] | None = None
) -> dict[str, str]:
    """The results and pictures in a run's folder that belong to other weights.

    Args:
        path: The run's folder.
        weights: The digest of the weights that are there now.
        results: Names of the files to look at; None: all. What cannot be read is left out: reading it says why.

    Returns:
        The names of the files, and for each the command that makes it again.
    """
    found = {}
    for name in (*_MAKERS, *pictures(path)) if results is None else results:
        try:
            own = _belongs_to(path / name, weights)
        except (OSError, CorruptFileError):
            continue
        if not own:
            found[name] = _command(path, name)
    return found


def _command(path: Path, name: str) -> str:
    """The command that makes a result, or a picture, again."""
    if name in _MAKERS:
        return f"{_MAKERS[name]} {as_typed(path)} --overwrite"
    if Path(name).name == SAMPLES:
        return f"{_MAKERS[SAMPLES]} {as_typed(path)} --overwrite"
    if Path(name).stem == Path(GAPS).stem:
        return f"{_MAKERS[GAPS]} {as_typed(path)} --overwrite"
    try:
        return command_again(read_config(path), path)
    except (OSError, ValueError):
        return command_again({}, path)


def command_again(config: Mapping[str, Any], path: Path) -> str:
    """The command that goes on with a run and writes its pictures again.

    A prior without checkpoints, which had no epochs, is fitted anew.

    Args:
        config: The content of config.yaml.
        path: The run's folder.

    Example:
        >>> command_again({"made_by": "em"}, Path("runs/a"))
        'ppl-vae em --resume runs/a'
    """
    maker = made_by(config)
    if maker != "refit-prior" or has_checkpoints(path):
        return f"ppl-vae {maker} --resume {as_typed(path)}"
    source = config.get("refit_of")
    words = [as_typed(Path(source)) if isinstance(source, str) else "RUN", *_options_of(config)]
    return f"ppl-vae {maker} {' '.join(words)} --run_dir {as_typed(path)} --overwrite"


def _options_of(config: Mapping[str, Any]) -> Iterator[str]:
    """The options of the prior that `ppl-vae refit-prior` was given, as they are typed."""
    spec = config.get("prior")
    if not isinstance(spec, Mapping):
        return
    options = {"": str(spec.get("class_path")).removeprefix("ppl_vae.models.")}
    given = spec.get("init_args")
    options |= {f".{n}": v for n, v in given.items()} if isinstance(given, Mapping) else {}
    for name, value in options.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        if isinstance(value, str | int | float):
            yield f"--prior{name} {as_typed(Path(text))}"


def made_by(config: Mapping[str, Any]) -> str:
    """The command that made a run; older runs do not say it, and what is no such command is not said either."""
    if config.get(MADE_BY) in _MAKERS_OF_RUNS:
        return str(config[MADE_BY])
    if "refit_of" in config:
        return "refit"
    return "em" if "max_iterations" in config else "train"


def _belongs_to(file: Path, weights: str) -> bool:
    """Whether a result belongs to weights; True if it does not say to which, or is not there."""
    if file.suffix != ".json":
        return names_weights(file, weights)
    summary = read_json(file) or {}
    return bool(summary.get(_WEIGHTS, weights) == weights)


def read_json(file: Path) -> dict[str, Any] | None:
    """The content of a JSON file; None if there is none."""
    _require_no_folder(file)
    if not file.is_file():
        return None
    try:
        return load_json(read_text(file, _MOST_JSON))
    except ValueError as error:
        raise CorruptFileError(
            file, f"this is not a result that can be read as JSON ({error}); {_AGAIN}"
        ) from error


def _require_size(file: Path) -> None:
    if file.stat().st_size > _MOST_CSV:
        raise CorruptFileError(file, f"it is larger than the {_MOST_CSV >> 20} MiB that are read")


def _require_no_folder(file: Path) -> None:
    if file.is_dir():
        raise CorruptFileError(file, f"this is a folder, where a file should be; {_AGAIN}")


def _again(path: Path, result: str) -> str:
    return f"create both again (`{_MAKERS[result]} {path} --overwrite`)"
