"""The problems found in a pair, and a run of a pair that catches its errors."""

from __future__ import annotations

import math
import re
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor

from ppl_vae.pairs import (
    Batch,
    Pair,
    PairError,
    Trace,
    as_args,
    drawn_rows,
    first_line,
    innermost,
    latent_sites,
    made_for_other_rows,
    num_rows,
    selects_outside,
    take_all_rows,
    tensors_of,
    trace_guide,
)
from ppl_vae.runtime import html_table, html_texts, preserve_random_state

_MIXED_TYPES = "torch.cuda.FloatTensor) should be the same"
"""How convolutions say it: Input type (torch.FloatTensor) and weight type (torch.cuda.FloatTensor) ..."""

_DTYPES = re.compile(
    r"dtype|scalar type|input type|data type|can't be cast|bool tensors?\b", re.IGNORECASE
)
"""How torch says that the dtypes of two tensors do not fit."""

_OTHER_SIZE = re.compile(r"Shape mismatch inside plate\('(.+?)'\) .* dim -\d+, (\d+) vs (\d+)")
"""How Pyro says that a plate has another size than a distribution inside."""


@dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
        severity: `error` if training would be wrong or impossible, `warning` if it may be intended.
        site: The site, plate, parameter or argument that has the problem.
        message: What is wrong, and what to do.
    """

    severity: Literal["error", "warning"]
    site: str
    message: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.message}"


DISCRETE = (
    "take a guide of discrete latents, such as Exact (--guide Exact) for a model that knows its posterior, or "
    "Enumerated (--guide Enumerated) for any model with few values; or fit the model by EM (fit_em, ppl-vae em)"
)
"""What to do about a guide whose latents are continuous, and those of the model are not."""


class PairWarning(UserWarning):
    """Something about a pair that may be intended, but usually is not."""


@dataclass(frozen=True)
class Report:
    """The problems that `check` found; true if there are no errors."""

    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether there are no problems at all, not even warnings."""
        return not self.problems

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The problems that make training wrong or impossible."""
        return tuple(p for p in self.problems if p.severity == "error")

    def __bool__(self) -> bool:
        return not self.errors

    def __str__(self) -> str:
        return "\n".join(str(p) for p in self.problems) or "no problems found"

    def __repr__(self) -> str:
        counts = {
            kind: sum(p.severity == kind for p in self.problems) for kind in ("error", "warning")
        }
        found = [f"{n} {kind}{'' if n == 1 else 's'}" for kind, n in counts.items() if n]
        return f"Report({', '.join(found) or 'no problems'})"

    def _repr_html_(self) -> str:
        if self.ok:
            return html_texts([str(self)])
        rows = [[p.severity, p.site, p.message] for p in self.problems]
        return html_table([["", "site", "problem"], *rows], header=True)

    def explained(self, doubt: str) -> Report:
        """The report with `Batches.doubt` added to its errors: perhaps the data were meant otherwise."""
        if not doubt:
            return self
        return Report(
            tuple(
                replace(p, message=f"{p.message} ({doubt})") if p.severity == "error" else p
                for p in self.problems
            )
        )

    def raise_errors(self) -> None:
        """Raises one `PairError` with all errors, if there are any."""
        if self.errors:
            raise PairError("\n".join(p.message for p in self.errors))

    def show_warnings(self) -> None:
        """Issues a `PairWarning` for each warning."""
        for problem in self.problems:
            if problem.severity == "warning":
                warnings.warn(problem.message, PairWarning, stacklevel=4)


def run_pair(pair: Pair, batch: Batch) -> tuple[Trace, Trace] | Problem:
    """The traces of model and guide on a batch, or a `Problem` that explains the error that one raised.

    A plate over rows that draws some of them takes them all from then on: see `take_all_rows`.
    """
    found = _run(pair, batch)
    try:
        return _run(pair, batch) if take_all_rows(pair, batch) else found
    except PairError as error:
        return Problem("error", "", str(error))


def _run(pair: Pair, batch: Batch) -> tuple[Trace, Trace] | Problem:
    args = as_args(batch)
    role = "guide"
    try:
        with torch.no_grad():
            with pyro.validation_enabled(False):
                guide_trace = trace_guide(pair.guide, *args)
            role = "model"
            with pyro.validation_enabled(False):
                model = poutine.replay(pair.model, trace=guide_trace)
                model_trace = poutine.trace(model).get_trace(*args)
    except Exception as error:
        other = _other_latents(pair, args, guide_trace) if role == "model" else ""
        if other:
            return Problem("error", role, other)
        shapes = ", ".join("None" if t is None else str(tuple(t.shape)) for t in args)
        return Problem(
            "error",
            role,
            f"the {role} raised {type(error).__name__} on a batch of shape {shapes}: {first_line(error)}"
            f"{_other_dtype(pair, tensors_of(batch), error)}{other_device(error)}"
            f"{_own_rows(pair, batch, error)}{_selected(pair, batch, error)}"
            f"{made_for_other_rows(pair, batch)}{_calls_itself(error)}",
        )
    return model_trace, guide_trace


def _other_latents(pair: Pair, args: Sequence[Any], guide_trace: Trace) -> str:
    """What to say if a model that raises with the guide's latents draws others itself; otherwise empty."""
    try:
        with preserve_random_state(), torch.no_grad(), pyro.validation_enabled(False):
            alone = poutine.trace(pair.model).get_trace(*args)
    except Exception:  # the latents are not the reason
        return ""
    for name, site in latent_sites(alone).items():
        other = guide_trace.nodes.get(name)
        if other is None or other["type"] != "sample":
            continue
        own, given = site["fn"].event_shape, other["fn"].event_shape
        if site["fn"].has_enumerate_support and not other["fn"].has_enumerate_support:
            kinds = [type(innermost(s["fn"])).__name__ for s in (site, other)]
            return (
                f"site '{name}' is discrete in the model, {kinds[0]}, and not in the guide, {kinds[1]}: "
                f"{DISCRETE}"
            )
        if own != given:
            return (
                f"site '{name}' has {_numbers(own)} in the model and {_numbers(given)} in the guide: the two "
                f"must be the same{_how_to_agree(pair, own, given)}"
            )
    return ""


def _how_to_agree(pair: Pair, own: Sequence[int], given: Sequence[int]) -> str:
    """How model and guide get latents of one size, if their classes take it as `latent_dim`."""
    both = all(hasattr(program, "latent_dim") for program in (pair.model, pair.guide))
    if not both or len(own) != 1 or len(given) != 1:
        return ""
    return (
        f"; give both one latent_dim, {own[0]} or {given[0]} (on the command line --model.latent_dim alone: "
        "the guide takes it from there)"
    )


def _numbers(shape: Sequence[int]) -> str:
    count = math.prod(shape)
    return (
        f"{count} {'dimension' if count == 1 else 'dimensions'}"
        if len(shape) == 1
        else f"event shape {tuple(shape)}"
    )


def _calls_itself(error: Exception) -> str:
    """The line of the user's program that calls itself without end; empty for other errors."""
    if not isinstance(error, RecursionError):
        return ""
    own = [
        frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)
    ]
    if not own:
        return ""
    often, _ = Counter((f.filename, f.lineno, f.name) for f in own).most_common(1)[0]
    file, line, name = often
    return f": {name} calls itself without end, in {'/'.join(Path(file).parts[-2:])}, line {line}"


def _selected(pair: Pair, batch: Batch, error: Exception) -> str:
    found = selects_outside(pair, batch, error)
    return f": {found}" if found else ""


def _is_users(file: str) -> bool:
    """Whether a file is neither of this package nor of an installed one."""
    ours = Path(__file__).parents[1]
    return not file.startswith("<") and not any(
        part in ("site-packages", "dist-packages") or Path(file).is_relative_to(ours)
        for part in Path(file).parts
    )


def mixes_devices(error: Exception) -> bool:
    """Whether a program raised because its tensors are on different devices."""
    said = str(error)
    return any(words in said for words in ("on the same device", "same device as", _MIXED_TYPES))


def _own_rows(pair: Pair, batch: Batch, error: Exception) -> str:
    """The remedy if a program may have drawn rows that it was not given, or has a plate of more; or empty."""
    n = num_rows(batch)
    other = _OTHER_SIZE.search(str(error))
    if other is not None and int(other[3]) == n != int(other[2]):
        name, size = other[1], other[2]
        return (
            f"; plate '{name}' has {size} elements, and the programs are given {n} rows: write "
            f'pyro.plate("{name}", len(x)), or pyro.plate("{name}", {size}, subsample_size=len(x)) for a loss '
            f"that stands for all {size} rows; or give all rows at once (in fit, batch_size={size})"
        )
    if not isinstance(error, IndexError):
        return ""
    for name, (size, part) in pair.subsampling.met.items():
        if size > n and not pair.subsampling.takes_all.get(name, False):
            return drawn_rows(name, size, part)
    return ""


def other_device(error: Exception) -> str:
    """The remedy if a program raised because its tensors are on different devices; otherwise empty."""
    if not mixes_devices(error):
        return ""
    return (
        "; the rows are where the parameters are: make the program's own tensors there, as in "
        "torch.zeros(2, device=x.device), or compute on the CPU (device='cpu' in fit and on the command "
        "line, .cpu() for modules)"
    )


def _other_dtype(pair: Pair, args: tuple[Tensor, ...], error: Exception) -> str:
    """The remedy if a program raised because data and parameters have different dtypes; otherwise empty."""
    if not _DTYPES.search(str(error)):
        return ""
    stored = pyro.get_param_store().named_parameters()
    parameters = [p for m in pair.modules().values() for p in m.parameters()]
    types = [p.dtype for p in (*parameters, *(p for _, p in stored)) if p.is_floating_point()]
    if len(set(types)) > 1:
        kinds = " and ".join(sorted(str(dtype) for dtype in set(types)))
        return (
            f"; the pair has parameters of {kinds}: bring model and guide to one dtype, as model.float() and "
            "guide.float() do"
        )
    for i, x in enumerate(args):
        name = "x" if len(args) == 1 else f"x[{i}]"
        if types and x.dtype != types[0]:
            return (
                f"; {name} is {x.dtype}, the parameters are {types[0]}: "
                f"pass {as_numbers(name, x.dtype, types[0])}"
            )
        if not (types or x.is_floating_point() or x.is_complex()):
            wanted = torch.get_default_dtype()
            return f"; {name} is {x.dtype}: pass {as_numbers(name, x.dtype, wanted)}"
    return ""


def as_numbers(name: str, dtype: torch.dtype, wanted: torch.dtype) -> str:
    """How to write a tensor of some dtype as one of floating-point numbers of another.

    Example:
        >>> as_numbers("x", torch.int64, torch.float32)
        "x.float() (numpy, pandas: x.astype('float32'))"
    """
    method = {torch.float32: "float()", torch.float64: "double()"}.get(wanted, f"to({wanted})")
    if dtype.is_complex:
        return f"torch.view_as_real({name}).{method}, with a last dimension of 2"
    if dtype.is_floating_point:
        return f"{name}.{method}"
    return f"{name}.{method} (numpy, pandas: {name}.astype('{str(wanted).removeprefix('torch.')}'))"
