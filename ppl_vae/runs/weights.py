"""The weights of a pair on disk."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributions.constraints import Constraint

from ppl_vae.pairs import ELBO_MEASURE, Pair, Program, measure_of_result
from ppl_vae.runs.contents import CHECKPOINTS, EVALUATION, METRICS, VOCABULARY, WEIGHTS
from ppl_vae.runs.folder import read_csv, read_result
from ppl_vae.runs.trust import Trust
from ppl_vae.runtime import (
    CorruptFileError,
    as_typed,
    content_digest,
    read_metadata,
    read_tensors,
    write_tensors,
)


class ReplacedError(RuntimeError):
    """The weights in a run's folder are no longer those that were read: another process has written there."""


_PARAM = "param."  # how Pair.state() marks the values of pyro.param


_EPOCHS = "epochs"
"""Key in the metadata of weights: how many lines of metrics.csv led to them. Earlier versions wrote none."""

_VOCABULARY = "vocabulary_sha256"
"""Key in the metadata of weights: the digest of the vocabulary that was saved with them."""


def write_weights(
    path: Path,
    model: Program,
    guide: Program,
    *,
    epochs: int | None = None,
    vocabulary: bytes | None = None,
) -> str:
    """Writes the state of a pair. `pyro.param` values are unconstrained; their constraints are written too.

    Args:
        path: The run's folder.
        model: The model.
        guide: The guide.
        epochs: The lines of metrics.csv that led to these weights: a training that goes on adds more of them
            before it writes its own. None if that is not known.
        vocabulary: The content of vocabulary.json, whose digest is written, too; None without one.

    Returns:
        A digest of names, values and constraints. It is written into the results that belong to them.
    """
    pair = Pair.of(model, guide)
    constraints = constraints_of(pair)
    known: dict[str, Any] = {} if epochs is None else {_EPOCHS: epochs}
    if vocabulary is not None:
        known[_VOCABULARY] = sha256(vocabulary).hexdigest()
    write_tensors(path / WEIGHTS, pair.state(), {"constraints": constraints, **known})
    return content_digest(path / WEIGHTS)


def require_own_vocabulary(path: Path) -> None:
    """Raises an error if vocabulary.json is not what was saved with the weights, if they say what that was.

    Raises:
        CorruptFileError: It was changed, is that of another run, or is missing; or the weights are damaged.
    """
    file = path / VOCABULARY
    known = read_metadata(path / WEIGHTS).get(_VOCABULARY)
    there = sha256(file.read_bytes()).hexdigest() if file.is_file() else None
    if known is not None and known != there:
        what = "is missing" if there is None else "was changed, or is that of another run"
        raise CorruptFileError(
            file,
            f"it {what}: the weights in {WEIGHTS} are for the numbers of the one that was saved with them; put "
            "that back, or save the run again",
        )


def constraints_of(pair: Pair) -> dict[str, dict[str, Any]]:
    """The constraints of the `pyro.param` values of a pair by name, as `read_state` finds them in a file.

    Raises:
        TypeError: One of them cannot be written as names and numbers.
    """
    found = {}
    for name in pair.store["params"]:
        try:
            found[name] = _describe_constraint(pair.store["constraints"][name])
        except TypeError as error:
            raise TypeError(f"pyro.param '{name}' cannot be saved: {error}") from error
    return found


def require_weights(path: Path, weights: str) -> None:
    """Raises an error unless a run's folder holds the weights with this digest.

    Raises:
        ReplacedError: It holds others, or none that can be read.
    """
    try:
        there = content_digest(path / WEIGHTS)
    except (FileNotFoundError, CorruptFileError):
        there = None
    if there != weights:
        raise ReplacedError(
            f"{path} holds other weights than those that were read: it has been trained or replaced meanwhile. "
            "Nothing was written there; run the command again for the new ones"
        )


def read_history(path: Path) -> list[dict[str, float]]:
    """The lines of metrics.csv that led to the weights that are there; empty if there is no such file.

    A warning tells of more: those of a training that goes on, or was interrupted. Where the guide gives points,
    earlier versions called `elbo` what is none: if the evaluation of the run says so, it is named as today.

    Raises:
        CorruptFileError: The file, or that of the weights, is damaged.
    """
    history = _under_its_names(path, read_csv(path / METRICS))
    if not history:
        return []
    epochs = read_metadata(path / WEIGHTS).get(_EPOCHS)
    if not isinstance(epochs, int) or not 0 <= epochs < len(history):
        return history
    more = len(history) - epochs
    warnings.warn(
        f"{path / METRICS} holds {more} line{'' if more == 1 else 's'} after those of the weights: a training "
        "goes on, or was interrupted. They are left out; to finish it, use `--resume`",
        stacklevel=3,
    )
    return history[:epochs]


def _under_its_names(path: Path, history: list[dict[str, float]]) -> list[dict[str, float]]:
    if not any(ELBO_MEASURE.name in row for row in history):
        return history
    try:
        measure = measure_of_result(read_result(path / EVALUATION))
    except (OSError, CorruptFileError):  # which whoever reads it is told
        return history
    return [measure.of(row) for row in history]


def what_history_lacks(path: Path) -> str:
    """What metrics.csv lacks of the lines that led to the weights, in words; empty if it does not.

    Weights of earlier versions do not say how many lines these were: then no line is missed.

    Raises:
        CorruptFileError: The file, or that of the weights, is damaged.
    """
    epochs = read_metadata(path / WEIGHTS).get(_EPOCHS)
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        return ""
    file, uneven = path / METRICS, list[int]()
    found = len(read_csv(file, uneven))
    cut = next((place + 1 for place in uneven if place < epochs), None)
    if not file.is_file():
        return f"{file}: it is missing"
    if found < epochs:
        return f"{file}: it holds {found} of the {epochs} lines that led to the weights"
    return (
        "" if cut is None else f"{file}: line {cut} below its head has not one number for each name"
    )


def read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The numbers in a run's folder, as `Pair.state` names them. Nothing that the folder names is imported.

    Returns:
        The tensors, and the description of the constraint of each `pyro.param` value, by its name.

    Raises:
        FileNotFoundError: The run has no weights.
        CorruptFileError: They are damaged, or something else.
    """
    file, remedy = path / WEIGHTS, _remedy(path)
    try:
        state, metadata = read_tensors(file)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} has no {WEIGHTS}: {remedy}") from error
    except CorruptFileError as error:
        raise CorruptFileError(file, f"{str(error).removeprefix(f'{file}: ')}; {remedy}") from error
    if "constraints" not in metadata:
        raise CorruptFileError(file, f"the file holds something else than weights; {remedy}")
    constraints = metadata.get("constraints")
    if not isinstance(constraints, dict) or not all(_PARAM + name in state for name in constraints):
        raise CorruptFileError(file, f"it lacks the constraints of its parameters; {remedy}")
    return state, constraints


def _remedy(path: Path) -> str:
    """What to do about weights that cannot be read."""
    if (path / CHECKPOINTS).is_dir():
        command = f"ppl-vae train --resume {as_typed(path)}"
        return f"`{command}` finishes the run from its checkpoints and writes it again"
    return "save or train the run again"


def read_weights(path: Path, model: Program, guide: Program, trust: Trust) -> str:
    """Loads the saved state into a pair.

    Returns:
        Its digest.
    """
    file = path / WEIGHTS
    state, constraints = read_state(path)
    weights = content_digest(file)
    pair = Pair.of(model, guide)
    trust.check_constraints(
        file, [c for described in constraints.values() for c in _classes(file, described)]
    )
    for name, described in constraints.items():
        pair.store["params"][name] = state.pop(_PARAM + name).requires_grad_()
        pair.store["constraints"][name] = _as_constraint(described, trust)
    _check_names(file, pair, state)
    pair.load_state(state)
    pair.remember()
    return weights


def _check_names(file: Path, pair: Pair, state: Mapping[str, Tensor]) -> None:
    own = {name for name in pair.state() if not name.startswith(_PARAM)}
    missing, unknown = sorted(own - set(state)), sorted(set(state) - own)
    if missing:
        raise ValueError(f"{file} has no values for {_some(missing)}: it belongs to another pair")
    if unknown:
        raise ValueError(
            f"{file} has values for {_some(unknown)}, which the pair lacks: it belongs to another pair. (An "
            "autoguide makes its parameters when it first runs: call guide(x) once before load_run)"
        )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _describe_constraint(constraint: Any) -> dict[str, Any]:
    """A constraint as the name of its class and the numbers in it."""
    numbers: dict[str, Any] = {}
    for name, value in vars(constraint).items():
        if isinstance(value, Constraint):
            numbers[name] = _describe_constraint(value)
        elif isinstance(value, (bool, int, float)):
            numbers[name] = value
        else:
            raise TypeError(
                f"its constraint {constraint} holds a {type(value).__name__}, not a number"
            )
    kind = type(constraint)
    return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": numbers}


def _classes(file: Path, described: Any) -> Iterator[str]:
    """The names of the classes in a description that `_describe_constraint` may have made."""
    match described:
        # No name but one of a class: it is shown in a command to be typed.
        case {"class_path": str(name), "init_args": dict(arguments)} if all(
            word.isidentifier() for word in name.split(".")
        ):
            yield name
            for value in arguments.values():
                if not isinstance(value, bool | int | float):
                    yield from _classes(file, value)
        case _:
            raise CorruptFileError(file, f"{described!r:.80} is not the constraint of a parameter")


def _as_constraint(described: Mapping[str, Any], trust: Trust) -> Constraint:
    arguments = {
        name: _as_constraint(value, trust) if isinstance(value, dict) else value
        for name, value in described["init_args"].items()
    }
    kind = trust.resolve(described["class_path"], "constraint")
    constraint: Constraint = kind.__new__(
        kind
    )  # its constructor may not take the attributes that it sets
    vars(constraint).update(arguments)
    return constraint
