"""A folder of checkpoints: whole states of a training, of which the newest good one is read."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ppl_vae.networks import Recipe, recipe_of
from ppl_vae.pairs import Batches, Pair, tensors_of
from ppl_vae.runs.run_folder import RunFolder
from ppl_vae.runtime import (
    CorruptFileError,
    digest,
    flatten,
    own_folder,
    read_tensors,
    remove_left_behind,
    unflatten,
    write_tensors,
)

KEPT = 2
"""Checkpoints kept in a run folder: the newest and, in case it turns out damaged, the one before."""


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], facts: dict[str, Any]) -> None:
    """Writes `step-N.safetensors` atomically, then removes all but the newest ones.

    Args:
        folder: The run's `checkpoints` folder.
        step: Steps taken.
        state: Nested dicts and lists of tensors and numbers.
        facts: Information that JSON can hold.
    """
    own_folder(folder)
    remove_left_behind(folder)
    flat, tensors = flatten(state)
    file = _file(folder, step)
    if file.is_dir():  # it was passed over when the training was resumed
        file.rename(file.with_name(f"{file.name}.folder"))
    write_tensors(file, tensors, {"facts": facts, "state": flat})
    for old in [file for file in checkpoint_files(folder) if not file.is_dir()][KEPT:]:
        old.unlink(missing_ok=True)


def load_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The newest good checkpoint, as `(state, facts)`; a warning names those that are passed over.

    Raises:
        FileNotFoundError: There is no checkpoint.
        CorruptFileError: All of them are damaged, or something else.
        OSError: None of them can be read, and the system does not let one of them be read.
    """
    files = checkpoint_files(folder)
    if not files:
        raise FileNotFoundError(
            f"{folder}: there is no checkpoint to resume from; start the training again"
        )
    errors: list[CorruptFileError | OSError] = []
    for file in files:
        try:
            found = _read(file)
        except (CorruptFileError, OSError) as error:
            errors.append(error)
            continue
        for bad, passed_over in zip(files, errors, strict=False):
            why = _why(bad, passed_over)
            warnings.warn(f"{bad}: {why}; continuing from {file.name} instead", stacklevel=2)
        return found
    newest, why = files[0], _why(files[0], errors[0])
    none = "no other checkpoint in the folder is good"
    unread = next((error for error in errors if isinstance(error, OSError)), None)
    if unread is not None:  # nothing is wrong with what is in it: the training need not start again
        at = files[errors.index(unread)]
        raise type(unread)(
            f"{at}: {_why(at, unread)}; {none}: make it readable, and try again"
        ) from unread
    raise CorruptFileError(newest, f"{why}; {none}: start the training again")


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    tensors, metadata = read_tensors(file)
    if not {"state", "facts"} <= metadata.keys():
        raise CorruptFileError(file, "the file holds something else than a checkpoint")
    try:
        return unflatten(metadata["state"], tensors), metadata["facts"]
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise CorruptFileError(file, f"its state cannot be read ({error!r})") from error


def _why(file: Path, error: CorruptFileError | OSError) -> str:
    """Why a checkpoint cannot be read, without its name."""
    if isinstance(error, OSError) and error.strerror:
        return f"it cannot be read ({error.strerror})"
    return str(error).removeprefix(f"{file}: ")


def restore_optimizer(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Puts back the state of an optimizer from a checkpoint, if it is one for these parameters.

    The fused kernels of torch take shapes on trust: they read and write beyond a tensor that is too small. And
    they take the order of the numbers in memory on trust: averages get that of their parameter, which may be
    `channels_last`.

    Raises:
        ValueError: A tensor in it has another shape than the parameter that it belongs to.
    """
    try:
        optimizer.load_state_dict(saved)
        for group in optimizer.param_groups:
            _require_fitting(optimizer, group)
    except (LookupError, TypeError, AttributeError) as error:
        why = f"the state of its optimizer cannot be read ({error!r})"
        raise ValueError(f"{_OF_ANOTHER}: {why}; start the training again") from error


_OF_ANOTHER = "the checkpoint is not one of this training"


def _require_fitting(optimizer: Optimizer, group: Mapping[str, Any]) -> None:
    if any(isinstance(value, Tensor) and value.numel() != 1 for value in group.values()):
        raise ValueError(
            f"{_OF_ANOTHER}: an option of its optimizer is no number; start the training again"
        )
    for leaf in group["params"] if group.get("fused") else ():
        for name, value in list(optimizer.state.get(leaf, {}).items()):
            one = name == "step"
            if isinstance(value, Tensor) and not _fits(value, leaf, one):
                expected = "one number" if one else f"the shape {tuple(leaf.shape)}"
                raise ValueError(
                    f"{_OF_ANOTHER}: {name!r} of its optimizer has the shape {tuple(value.shape)}, expected "
                    f"{expected}; start the training again"
                )
            if isinstance(value, Tensor) and not one and value.stride() != leaf.stride():
                ordered = torch.empty_like(leaf, dtype=value.dtype, device=value.device)
                optimizer.state[leaf][name] = ordered.copy_(value)


def _fits(value: Tensor, leaf: Tensor, one: bool) -> bool:
    return value.numel() == 1 if one else value.shape == leaf.shape


MAY_CHANGE = ("max_epochs", "max_iterations", "patience", "num_samples", "tolerance")
"""Options that do not change the steps of a training."""

_OF_THE_PLACE = ("versions", "data_dir", "download", "device", "tensorboard", "trust", "refit_of")
"""Entries of config.yaml that say where a training runs, and where what it is made of is."""

_DIGESTS = {
    "data": "the rows of x are other rows, or their values have changed",
    "validation": "the validation rows are other rows, or their values have changed",
    "frozen": "the model that is kept has other weights",
}


def require_same(folder: RunFolder, now: Mapping[str, Any], then: Mapping[str, Any]) -> None:
    """Compares what a run was started with and what it is resumed with.

    Args:
        folder: The run folder.
        now: Facts by name. Those that an older checkpoint lacks are not compared, nor digests of what cannot be
            read twice, nor a seed that was left open.
        then: The facts of the checkpoint.

    Raises:
        ValueError: Something differs; the message names all of it.
    """
    differs = []
    for name, value in now.items():
        before = then.get(name)
        if name not in then or before == _as_json(value):
            continue
        if name in (*_DIGESTS, "config", "seed") and (value is None or before is None):
            continue
        if name in _DIGESTS:
            differs.append(_DIGESTS[name])
        elif name == "parameters" and before is not None:  # in pairs of name and shape
            then_had, has = ({n: tuple(s) for n, s in part} for part in (before, value))
            for each in [n for n in {**then_had, **has} if then_had.get(n) != has.get(n)]:
                differs.append(
                    f"parameter {each} = {then_had.get(each)}, now it is {has.get(each)}"
                )
        else:
            differs.extend(_differences(name, before, _as_json(value)))
    differs = list(dict.fromkeys(differs))  # settings of a part are also those of what holds it
    if differs:
        shown = "; ".join(differs[:5]) + (f"; and {len(differs) - 5} more" if differs[5:] else "")
        raise ValueError(
            f"{folder.folder}: a run is resumed as it was started; only {', '.join(MAY_CHANGE)} may change. "
            f"What differs: {shown}"
        )


def _differences(name: str, before: Any, now: Any) -> list[str]:
    """What differs between two trees of options, by dotted names, in what both of them have."""
    if isinstance(before, dict) and isinstance(now, dict):
        found = []
        for key in sorted(before.keys() & now.keys()):
            if name == "config" and key in (*MAY_CHANGE, *_OF_THE_PLACE):
                continue
            if name == "fit_of_prior" and key in MAY_CHANGE:
                continue
            inner = key if name == "config" else f"{name}.{key}"
            if before[key] != now[key]:
                found.extend(_differences(inner, before[key], now[key]))
        return found
    return [f"{name} = {before}, now it is {now}"]


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def programs_of(pair: Pair) -> dict[str, str]:
    """The classes that a pair is made of, without their modules: another script may import them as others.

    Parameters alone do not tell a pair from another one, with another likelihood, say, in whose place the
    weights would go on.
    """
    found = {"model": _name(pair.model), "guide": _name(pair.guide)}
    for root, module in pair.modules().items():
        for name, part in module.named_modules():
            found[f"{root}.{name}" if name else root] = type(part).__name__
    return found


def settings_of(pair: Pair) -> dict[str, Any]:
    """What the parts of a pair were built with, by their names, as plain values; of those that remember it.

    Many settings have no weights, such as the layer of a discriminator whose outputs are the features: two
    pairs of the same classes and shapes may still be two models.
    """
    return {
        f"{root}.{name}" if name else root: _plain(recipe)
        for root, module in pair.modules().items()
        for name, part in module.named_modules()
        if (recipe := recipe_of(part)) is not None
    }


def _plain(told: Any) -> Any:
    """What a recipe holds, with the names of classes and functions, without their modules."""
    if isinstance(told, Recipe):
        return {"class": told.kind.__name__, **_plain(told.arguments)}
    if isinstance(told, dict):
        return {name: _plain(value) for name, value in told.items()}
    if isinstance(told, list):
        return [_plain(value) for value in told]
    return _name(told) if callable(told) else told


def _name(program: Any) -> str:
    return str(getattr(program, "__name__", type(program).__name__))


def require_kind(folder: RunFolder, function: str, is_its_own: bool) -> None:
    """Raises an error for checkpoints of another function.

    Raises:
        ValueError: They are not those of this one.
    """
    if not is_its_own:
        raise ValueError(
            f"{folder.folder}: the checkpoints there were not written by {function}, which cannot go on "
            "with them: choose another run_dir, or call the function that wrote them"
        )


def digest_of_rows(batches: Batches) -> str | None:
    """A digest of all rows, which tells whether they have changed; None for an iterable."""
    return digest(tensors_of(batches.rows)) if batches.in_memory else None


def checkpoint_files(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first; none if there is no folder.

    Raises:
        OSError: The folder may not be read.
    """
    if folder.is_dir():  # whose entries `glob` leaves out, without a word, if it may not be read
        os.scandir(folder).close()
    return sorted(folder.glob("step-*.safetensors"), reverse=True)


def _file(folder: Path, step: int) -> Path:
    return folder / f"step-{step:09d}.safetensors"
