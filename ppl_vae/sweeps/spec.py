"""What a sweep runs: options that all runs share, a grid and a list of those that differ. Without torch."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ppl_vae.runtime import MOST_YAML, load_yaml, read_text
from ppl_vae.sweeps.picture import SweepPicture

SEED = "seed"
"""The option whose values are repetitions of one point."""

_PARTS = ("base", "grid", "list", "picture")
_EXAMPLE = "grid: {objective.beta: [0.5, 1, 2], seed: [0, 1]}"
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_PLAIN_NAME = re.compile(r"[\w.+-]+", re.ASCII)
_LONGEST_NAME = 120
_MOST_RUNS = 100_000


class SpecError(ValueError):
    """A description of a sweep that is none."""


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep.

    Attributes:
        options: All options that are given to the command, with the seed.
        varied: Those of grid and list, without the seed: runs that agree in them are repetitions.
        name: The name of its folder, made of what varies and the seed.
    """

    options: Mapping[str, Any]
    varied: Mapping[str, Any]
    name: str

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return int(self.options[SEED])

    @property
    def identity(self) -> str:
        """A text that is the same for the same options, in whatever order they are written."""
        return identity(self.options)

    def arguments(self) -> list[str]:
        """The options as they are typed; that of a class stands before those of its arguments.

        Example:
            >>> options = {"guide.bins": 4, "guide": "NeuralSpline", "labels": True, "seed": 0}
            >>> SweepRun(options, {}, "seed=0").arguments()
            ['--guide=NeuralSpline', '--labels=true', '--seed=0', '--guide.bins=4']
        """
        ordered = sorted(self.options, key=lambda name: name.count("."))
        return [f"--{name}={as_text(self.options[name])}" for name in ordered]


@dataclass(frozen=True)
class SweepSpec:
    """A description of a sweep.

    Attributes:
        base: Options that all runs share.
        grid: Values by option: all combinations are run.
        points: Options of points that are no grid; each is combined with each point of the grid.
        text: The text that it was read from.
        picture: What the picture of rate and distortion shows beside the points.

    Example:
        >>> text = "base: {max_epochs: 9}\\ngrid: {objective.beta: [1, 4], seed: [0, 1]}"
        >>> [run.name for run in SweepSpec.of(text).runs()]
        ['beta=1,seed=0', 'beta=1,seed=1', 'beta=4,seed=0', 'beta=4,seed=1']
    """

    base: Mapping[str, Any]
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    points: Sequence[Mapping[str, Any]] = ()
    text: str = ""
    picture: SweepPicture = field(default_factory=SweepPicture)

    @classmethod
    def of(cls, text: str) -> SweepSpec:
        """Reads a description in YAML.

        Args:
            text: `base`, `grid`, `list` and `picture`, as docs/sweep.md describes them.

        Raises:
            SpecError: It is no such description, or two of its points are the same.
        """
        try:
            content = load_yaml(text)
        except ValueError as error:
            raise SpecError(f"this is not YAML that can be read ({error})") from error
        if not isinstance(content, dict):
            raise SpecError(f"expected `grid:` or `list:` with options, such as {_EXAMPLE}")
        for name in map(str, content):
            if name not in _PARTS:
                near = get_close_matches(name, _PARTS, n=1)
                hint = (
                    f"did you mean {near[0]}?" if near else "options stand below base, grid or list"
                )
                raise SpecError(f"there is no part '{name}' of a sweep ({hint})")
        if "grid" not in content and "list" not in content:
            raise SpecError(
                f"neither `grid` nor `list` is there, so that nothing varies: add {_EXAMPLE}"
            )
        base = _options("base", content.get("base", {}))
        grid = _grid(content["grid"]) if "grid" in content else {}
        points = _list(content["list"]) if "list" in content else ()
        for point in points:
            if twice := sorted(point.keys() & grid.keys()):
                raise SpecError(f"{twice[0]} is in grid and in list: write it in one of the two")
        spec = cls(base, grid, points, text)
        _require_different(spec)
        if "picture" not in content:
            return spec
        try:
            picture = SweepPicture.of(content["picture"], [run.name for run in spec.runs()])
        except ValueError as error:
            raise SpecError(str(error)) from error
        return replace(spec, picture=picture)

    def runs(self) -> list[SweepRun]:
        """All runs, in the order of the description; the last option of the grid changes fastest."""
        short = _short_names({*self.grid, *(name for point in self.points for name in point)})
        found = []
        for given in self._combinations():
            options = {SEED: 0, **self.base, **given}
            varied = {name: value for name, value in given.items() if name != SEED}
            shown = {short[name]: value for name, value in varied.items()}
            name = _folder_name({**shown, SEED: options[SEED]}, options)
            found.append(SweepRun(options, varied, name))
        return found

    def num_runs(self) -> int:
        """How many runs there are."""
        sizes = [len(values) for values in self.grid.values()]
        number = max(len(self.points), 1)
        for size in sizes:
            number *= size
        return number

    def _combinations(self) -> Iterator[dict[str, Any]]:
        for point in self.points or ({},):
            for values in itertools.product(*self.grid.values()):
                yield {**point, **dict(zip(self.grid, values, strict=True))}


def read_spec(file: str | Path) -> SweepSpec:
    """Reads the description of a sweep from a file.

    Args:
        file: A text in YAML, with `base`, `grid` and `list`.

    Raises:
        FileNotFoundError: There is no such file.
        SpecError: It is no description of a sweep; the message names the file.
    """
    file = Path(file)
    if file.is_dir():
        raise SpecError(
            f"{file} is a folder: give a file with the description of a sweep, SPEC.yaml"
        )
    if not file.exists():
        raise FileNotFoundError(
            f"there is no file {file}: give one that describes a sweep in YAML, with options below `base`, and "
            f"below `grid` or `list` what varies, such as `{_EXAMPLE}` (see docs/sweep.md)"
        )
    try:
        return SweepSpec.of(read_text(file, MOST_YAML))
    except UnicodeDecodeError as error:
        raise SpecError(f"{file}: this is not text in UTF-8") from error
    except ValueError as error:
        raise SpecError(f"{file}: {error}") from error


def as_text(value: Any) -> str:
    """A value as it is typed on the command line.

    Example:
        >>> [as_text(value) for value in (True, None, 0.5, 1e3, "VAE", [64, 64])]
        ['true', 'null', '0.5', '1000', 'VAE', '[64, 64]']
    """
    return value if isinstance(value, str) else json.dumps(_canonical(value))


def identity(options: Mapping[str, Any]) -> str:
    """A text that is the same for the same options: 1 and 1.0 are, 1 and true are not.

    Example:
        >>> identity({"a": 1, "b": 2}) == identity({"b": 2.0, "a": 1}), identity({"a": True})
        (True, '{"a": true}')
    """
    return json.dumps(_canonical(options), sort_keys=True)


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The options in which two differ, with both values.

    Example:
        >>> differences({"seed": 0, "max_epochs": 5}, {"seed": 0, "data": "rows.npy"})
        ['data (none there, rows.npy here)', 'max_epochs (5 there, none here)']
    """
    missing = object()

    def shown(value: object) -> str:
        return "none" if value is missing else as_text(value)

    found = []
    for name in sorted({*one, *other}):
        a, b = one.get(name, missing), other.get(name, missing)
        if a is missing or b is missing or identity({name: a}) != identity({name: b}):
            found.append(f"{name} ({shown(a)} there, {shown(b)} here)")
    return found


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _canonical(inside) for name, inside in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(inside) for inside in value]
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
    return int(value) if whole else value


def _options(part: str, given: object) -> dict[str, Any]:
    """A mapping of options to values; numbers that YAML 1.1 takes for texts, as 1e-3, are numbers."""
    if not isinstance(given, dict) or not all(isinstance(name, str) and name for name in given):
        raise SpecError(
            f"{part}: expected options with values, such as {{max_epochs: 100}}, got {_shown(given)}"
        )
    options = {name: _value(f"{part}: {name}", value) for name, value in given.items()}
    if SEED in options and part != "grid":
        _require_seed(part, options[SEED])
    return options


def _grid(given: object) -> dict[str, Sequence[Any]]:
    options = _options("grid", given)
    for name, values in options.items():
        if not isinstance(values, list):
            raise SpecError(
                f"grid: {name}: expected a list of values, got {_shown(values)} (what does not vary "
                "belongs to base)"
            )
        if not values:
            raise SpecError(f"grid: {name}: the list is empty, so that there is nothing to run")
        for value in values if name == SEED else ():
            _require_seed("grid", value)
    if not options:
        raise SpecError("grid: it is empty, so that there is nothing to run")
    return options


def _list(given: object) -> Sequence[Mapping[str, Any]]:
    if not isinstance(given, list):
        raise SpecError(
            f"list: expected points, such as `- {{guide: FullCovariance}}`, got {_shown(given)}"
        )
    if not given:
        raise SpecError("list: it is empty, so that there is nothing to run")
    return [_options(f"list, point {number}", point) for number, point in enumerate(given, 1)]


def _value(where: str, value: Any) -> Any:
    if isinstance(value, str) and _NUMBER.fullmatch(value) and not value.isdigit():
        return float(value)
    if isinstance(value, list):
        return [_value(where, inside) for inside in value]
    if isinstance(value, dict):
        return {str(name): _value(where, inside) for name, inside in value.items()}
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise SpecError(f"{where}: expected a number, a text or a list, got {_shown(value)}")


def _require_seed(part: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise SpecError(f"{part}: seed: expected whole numbers from 0, got {_shown(value)}")


def _require_different(spec: SweepSpec) -> None:
    """Raises an error for two points that are the same, or too many."""
    if spec.num_runs() > _MOST_RUNS:
        raise SpecError(f"these are {spec.num_runs()} runs, and at most {_MOST_RUNS} are made")
    runs = spec.runs()
    seen: dict[str, int] = {}
    for number, run in enumerate(runs, 1):
        if run.identity in seen:
            raise SpecError(
                f"run {seen[run.identity]} and run {number} are the same ({run.name}): leave one of them out"
            )
        seen[run.identity] = number
    names = Counter(run.name for run in runs)
    twice = next((name for name, count in names.items() if count > 1), None)
    assert twice is None, f"two runs have the name {twice}"


def _short_names(options: set[str]) -> dict[str, str]:
    """The last word of each option, or all of it where two would be alike."""
    last = Counter(name.rpartition(".")[2] for name in options | {SEED})
    return {n: w if last[w := n.rpartition(".")[2]] == 1 or n == SEED else n for n in options}


def _folder_name(shown: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """A name that says what varies; with a digest where it cannot say it in full."""
    words = [f"{name}={as_text(value)}" for name, value in shown.items()]
    name = ",".join(words)
    plain = all(_PLAIN_NAME.fullmatch(as_text(value)) for value in shown.values())
    if plain and len(name) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(identity(options).encode()).hexdigest()[:8]
    readable = re.sub(r"[^\w.+=,-]+", "-", name, flags=re.ASCII)[: _LONGEST_NAME - 9].strip("-")
    return f"{readable}-{digest}"


def _shown(value: object) -> str:
    return f"{value!r:.60}"
