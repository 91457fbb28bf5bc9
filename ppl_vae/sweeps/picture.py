"""What a sweep's picture of rate and distortion shows beside its points. Without torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ppl_vae.runtime import CorruptFileError, load_json, read_text, write_bytes

CURVES = "curves.json"
"""The curves of a sweep, in its folder."""

_PARTS = ("entropy", "entropy_bound", "frozen", "exact")
_MOST_CURVES = 2**20


@dataclass(frozen=True)
class SweepPicture:
    """What a description asks for beside the points.

    Attributes:
        entropy: H of the data, nats per row, where it is known.
        entropy_bound: An upper bound of H instead, such as -log p(x) of a good model.
        frozen: The name of the run whose decoder's curve is drawn; empty: none.
        exact: Of which kind the exact curve is, "linear"; empty: none is drawn.

    Example:
        >>> SweepPicture.of({"entropy": 92.1, "frozen": "beta=1,seed=0"}, ["beta=1,seed=0"]).entropy
        92.1
    """

    entropy: float | None = None
    entropy_bound: float | None = None
    frozen: str = ""
    exact: str = ""

    @classmethod
    def of(cls, given: object, names: Sequence[str]) -> SweepPicture:
        """Reads the part `picture` of a description.

        Args:
            given: What stands there.
            names: The names of the runs.

        Raises:
            ValueError: It is no such part.
        """
        if not isinstance(given, Mapping):
            raise ValueError(
                f"picture: expected entries such as {{entropy: 92.1}}, got {given!r:.60}"
            )
        for name in given:
            if name not in _PARTS:
                raise ValueError(f"picture: there is no entry '{name}', only {', '.join(_PARTS)}")
        heights = {n: given[n] for n in ("entropy", "entropy_bound") if n in given}
        for name, value in heights.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (number and math.isfinite(value)):
                raise ValueError(
                    f"picture: {name}: expected a number, nats per row, got {value!r:.60}"
                )
        if len(heights) > 1:
            raise ValueError("picture: give entropy or entropy_bound, not both")
        frozen, exact = given.get("frozen", ""), given.get("exact", "")
        if frozen and frozen not in names:
            some = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
            raise ValueError(f"picture: frozen: there is no run {frozen!r:.60}, only {some}")
        if exact not in ("", "linear"):
            raise ValueError(f"picture: exact: expected linear, got {exact!r:.60}")
        return cls(**{n: float(v) for n, v in heights.items()}, frozen=frozen, exact=exact)


@dataclass(frozen=True)
class CurvePlace:
    """A point of a curve.

    Attributes:
        distortion: -E log p(x | z), nats per row.
        rate: E KL(q(z | x) || p(z)), nats per row.
    """

    distortion: float
    rate: float


@dataclass(frozen=True)
class Backdrop:
    """What is drawn behind the points of a sweep.

    Attributes:
        entropy: H of the data, nats per row; None: it is not known.
        entropy_bound: An upper bound of it; None: there is none.
        curves: The points of each curve, by its name.
    """

    entropy: float | None = None
    entropy_bound: float | None = None
    curves: Mapping[str, Sequence[CurvePlace]] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, picture: SweepPicture) -> Backdrop:
        """What a description asks for, with the curves that are in the folder of the sweep.

        Raises:
            CorruptFileError: The file of the curves is damaged.
        """
        curves = read_curves(folder)[1] if picture.frozen or picture.exact else {}
        return cls(picture.entropy, picture.entropy_bound, curves)


def write_curves(folder: Path, of: str, curves: Mapping[str, Sequence[CurvePlace]]) -> None:
    """Keeps curves in the folder of a sweep.

    Args:
        folder: The folder.
        of: What they are of, in a text that changes if they are to be found again.
        curves: The points of each curve, by its name.
    """
    content = {
        "of": of,
        "curves": {
            name: [[p.distortion, p.rate] for p in places] for name, places in curves.items()
        },
    }
    write_bytes(folder / CURVES, (json.dumps(content) + "\n").encode())


def read_curves(folder: Path) -> tuple[str, dict[str, list[CurvePlace]]]:
    """What `write_curves` has kept; an empty text and no curves if there is nothing.

    Raises:
        CorruptFileError: The file is damaged.
    """
    file = folder / CURVES
    if not file.is_file():
        return "", {}
    try:
        content: Any = load_json(read_text(file, _MOST_CURVES))
        curves = {
            str(name): [CurvePlace(float(d), float(r)) for d, r in places]
            for name, places in content["curves"].items()
        }
        if not all(math.isfinite(p.rate + p.distortion) for c in curves.values() for p in c):
            raise ValueError("a number is not finite")
        return str(content["of"]), curves
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CorruptFileError(
            file, f"these are no curves of a sweep ({error}); remove the file"
        ) from error
