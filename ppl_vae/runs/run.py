"""A run on disk: a folder that records how a pair was built, what it has learned and how good it is.

| file | content |
| --- | --- |
| config.yaml | how model and guide are built, options, seed, versions |
| weights.safetensors | modules' state and `pyro.param` values; atomic, checksummed, no pickle |
| vocabulary.json | which text the numbers of a model of sentences stand for |
| metrics.csv | one line per epoch |
| fit.json | notes and warnings of `fit_em` |
| evaluation.json | what `evaluate` found: means, errors, counts, warnings |
| evaluation.csv | the same row by row |
| diagnosis.json | what `diagnose` found |
| annealed.json, annealed.csv; gaps.json, gaps.csv | what annealing and `inference_gaps` found |
| posterior.nc | what `to_arviz` made |
| plots/, plots_dark/ | pictures, drawn by `ppl-vae train`, on white and on dark paper |
| report.html | what `ppl_vae.reporting.html_report` made |
| checkpoints/ | what `fit` needs to continue |

Nothing in it is pickled. Loading a run imports only classes of this package, of torch and of Pyro that suit
their places, unless the user trusts the folder: see docs/security.md.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch

from ppl_vae.data import Vocabulary
from ppl_vae.pairs import (
    ELBO_MEASURE,
    Pair,
    Program,
    attach_guide,
    keep_guide,
    kept_guides,
    measure_of_result,
    own_attribute,
)
from ppl_vae.runs.building import build, described_truly
from ppl_vae.runs.contents import CONFIG, DIAGNOSIS, EVALUATION, METRICS, VOCABULARY, WEIGHTS
from ppl_vae.runs.folder import (
    Summary,
    describe_rows,
    read_config,
    read_result,
    read_rows,
    results_of_other_weights,
    write_history,
    write_results,
)
from ppl_vae.runs.lock import LockedError
from ppl_vae.runs.names import name_of
from ppl_vae.runs.run_folder import RunFolder
from ppl_vae.runs.trust import ROLES, Trust, UntrustedError
from ppl_vae.runs.weights import (
    read_history,
    read_weights,
    require_own_vocabulary,
    require_weights,
    write_weights,
)
from ppl_vae.runtime import (
    CorruptFileError,
    as_folder,
    described,
    html_table,
    html_texts,
    require_flags,
)

_TRIES = 10
"""How often a run is read again that another process has replaced meanwhile."""


class Trained(Protocol):
    """The part of what `fit` returns that a run holds."""

    @property
    def history(self) -> Sequence[Mapping[str, float]]:
        """One mapping per epoch."""


class Saved(Protocol):
    """What can be written to a file, such as a `ppl_vae.data.Vocabulary`."""

    def save(self, path: Path) -> None:
        """Writes it."""


@dataclass(frozen=True)
class Run:
    """A run that was read from disk.

    Attributes:
        path: Its folder.
        config: The content of config.yaml.
        model: The model with its trained weights, in evaluation mode if it is a module.
        guide: The guide, in the same way.
        history: One mapping per epoch, from metrics.csv, up to the weights; empty if there is none.
        evaluation: The content of evaluation.json, or None.
        evaluation_rows: Its per-row values by name, or None.
        diagnosis: The content of diagnosis.json, or None.
        weights_sha256: A digest of the weights, which stands in the results that belong to them.
        vocabulary: Which text the rows of numbers are, from vocabulary.json; None if the run has none. The
            file is read when this is first asked for, which raises a `CorruptFileError` if it is damaged, or
            is not the one that was saved, or has another size than the model was built for.
    """

    path: Path
    config: dict[str, Any]
    model: Program
    guide: Program
    history: list[dict[str, float]]
    evaluation: dict[str, Any] | None
    evaluation_rows: dict[str, list[Any]] | None
    diagnosis: dict[str, Any] | None
    weights_sha256: str

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """See above."""
        file = self.path / VOCABULARY
        found = Vocabulary.load(file) if os.path.lexists(file) else None
        require_weights(self.path, self.weights_sha256)  # another run may be there by now
        if found is not None and (wrong := _wrong_size(self.model, found)):
            raise CorruptFileError(file, f"{wrong}: it belongs to another model")
        require_own_vocabulary(self.path)
        return found

    def __repr__(self) -> str:
        facts = [f"{name} {value}" for name, value in self._lines()]
        return f"Run({', '.join([repr(str(self.path)), *facts])})"

    def _repr_html_(self) -> str:
        faults = (self.diagnosis or {}).get("summary", "")
        return html_table([("run", str(self.path)), *self._lines()]) + html_texts(
            str(faults).splitlines()
        )

    def _lines(self) -> list[tuple[str, str]]:
        """What is known of it, each with its name."""
        lines = [("model", type(self.model).__name__), ("guide", type(self.guide).__name__)]
        if "data" in self.config:
            lines.append(("data", str(self.config["data"])))
        if self.history:
            lines.append(("epochs", str(len(self.history))))
        known = self.evaluation or {}
        measure = measure_of_result(known)
        names = {measure.name: measure.text, "log_likelihood": "log p(x)"}
        for name, text in {**names, "distortion": "distortion"}.items():
            found = known.get(name)
            value = found.get("mean") if isinstance(found, Mapping) else None
            needed = name != "distortion" or measure is not ELBO_MEASURE
            if isinstance(value, float) and math.isfinite(value) and needed:
                lines.append((text, f"{value:.3f} nats"))
        return lines


def save_run(
    path: str | Path,
    model: Program,
    guide: Program,
    *,
    config: Mapping[str, Any] | None = None,
    fit: Trained | None = None,
    evaluation: Summary | Mapping[str, Any] | None = None,
    diagnosis: Summary | Mapping[str, Any] | None = None,
    arviz: Any = None,
    rows: Any = None,
    vocabulary: Saved | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a pair and its results into a folder.

    Args:
        path: The folder; it is created, with its parents.
        model: The model; its `pyro.param` values are those of the last `fit` of this pair.
        guide: The guide.
        config: What to write into config.yaml. `load_run` builds the models and guides of this package itself,
            and classes that derive from them. For others, `model` and `guide` may say how, each as
            `{"class_path": ..., "init_args": {...}}`; otherwise they must be passed to `load_run`.
            `model_guide`, in the same form, is the guide that the model keeps a copy of, if it does (a
            VampPrior that is saved with another guide than it was trained with).
        fit: What `fit` returned, for metrics.csv.
        evaluation: What `evaluate` returned, or its `to_dict()` with additions.
        diagnosis: What `diagnose` returned, or its `to_dict()`.
        arviz: What `to_arviz` returned.
        rows: The rows that were evaluated, a tensor or array `(n, ...)`: their digest is kept, and runs on the
            same rows can be compared.
        vocabulary: What has made the rows of a model of sentences out of text, a `ppl_vae.data.Vocabulary`:
            `load_run` returns it with the pair, and `ppl-vae translate` needs it.
        overwrite: Whether an existing run may be replaced, once all of this one is written. All its weights and
            results are removed, even those that are not written again; files that are not part of a run stay.

    Raises:
        FileExistsError: There is a run at `path` and `overwrite` is False, or something that is not a run.
        NotADirectoryError: `path` is a file, or below one.
        LockedError: Another process writes there.
        DiskFullError: There is no room; a run that was there is as it was.
        TypeError: A `pyro.param` has a constraint that cannot be written as names and numbers, or an argument
            is of another type.
        ValueError: The vocabulary has another size than the model was built for, or what it saves is none.

    Example:
        >>> import tempfile
        >>> from ppl_vae.guides import MeanField
        >>> from ppl_vae.models import VAE
        >>> folder = f"{tempfile.mkdtemp()}/run"
        >>> save_run(folder, VAE((3,), latent_dim=2), MeanField((3,), latent_dim=2))
        >>> load_run(folder).model.latent_dim
        2
    """
    path = as_folder(path, "path")
    require_flags(overwrite=overwrite)
    _require_from(evaluation, "evaluation", "evaluate", ("distortion", "log_likelihood"))
    _require_from(diagnosis, "diagnosis", "diagnose", ("active_units",))
    _require_results(config=config, evaluation=evaluation, diagnosis=diagnosis)
    if fit is not None and not hasattr(fit, "history"):
        raise TypeError(f"fit must be what fit has returned, got {described(fit)}")
    if not (arviz is None or hasattr(arviz, "to_datatree") or hasattr(arviz, "to_netcdf")):
        raise TypeError(f"arviz must be what to_arviz has returned, got {described(arviz)}")
    if vocabulary is not None:
        _require_vocabulary(vocabulary, model)
    full = dict(config or {})
    pair = Pair.of(model, guide)  # of the programs themselves, with what they have learned
    programs: list[tuple[str, Any]] = [("model", pair.model), ("guide", pair.guide)]
    programs += [("model_guide", each) for each in kept_guides(pair.model)]
    again: tuple[Any, Any] | None = None
    for role, program in programs:
        told, built = described_truly(program, role, again)
        if role == "model" and built is not None:
            again = (program, built)
        full.setdefault(role, told or {"class_path": name_of(program)})
    kept = None if rows is None else describe_rows(rows)
    with RunFolder.new(path, full, overwrite=overwrite) as run:
        words: bytes | None = None
        if vocabulary is not None:
            vocabulary.save(run.path / VOCABULARY)
            Vocabulary.load(run.path / VOCABULARY)
            words = (run.path / VOCABULARY).read_bytes()
        epochs = None if fit is None else len(fit.history)
        weights = write_weights(run.path, model, guide, epochs=epochs, vocabulary=words)
        if fit is not None:
            write_history(run.path, fit.history)
        write_results(
            run.path,
            evaluation=evaluation,
            diagnosis=diagnosis,
            arviz=arviz,
            rows=kept,
            weights=weights,
        )
        run.begin()


def load_run(
    path: str | Path,
    model: Program | None = None,
    guide: Program | None = None,
    *,
    trust: bool | Collection[str] | Trust = False,
    results: bool = True,
) -> Run:
    """Reads a run. Its pair evaluates exactly as the one that was saved.

    Args:
        path: The run's folder.
        model: The model, with any weights; the saved weights are loaded into it in place. If None, it is
            built from config.yaml. It is required if config.yaml does not say how to build it (for example,
            a function).
        guide: The guide, in the same way.
        trust: What the folder may name beside the classes of this package, of torch and of Pyro: True (all that
            it names, which may then do anything to your files), or the names of packages and modules.
        results: Whether to read what was found earlier, too. False leaves the history, the evaluation and the
            diagnosis out, so that those can be replaced that are damaged or belong to other weights.

    Returns:
        The `Run`.

    Raises:
        FileNotFoundError: No such folder, or no run in it.
        CorruptFileError: A file is damaged, or a result belongs to other weights; the message names it and says
            what to do.
        UntrustedError: The folder names other classes or functions; nothing was imported.
        LockedError: Other runs take the place of this one all the time.
        ValueError: config.yaml cannot be used, or the weights are those of another pair.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"load_run takes the path of a run folder, got {described(path)}")
    if os.fspath(path) == "":
        raise ValueError("the path of the run is empty: give its folder")
    require_flags(results=results)
    path = Path(path)
    allowed = Trust.of(trust, path)
    for _ in range(_TRIES):
        before = _written(path)
        try:
            found = _load(path, model, guide, allowed, results)
        except (CorruptFileError, FileNotFoundError, ValueError):
            if before == _written(path):
                raise
        else:
            if before == _written(path):
                return found
    raise LockedError(f"{path} is replaced by other runs all the time: read it when that has ended")


def _written(path: Path) -> list[tuple[int, int] | None]:
    """What tells a run from another that has taken its place, and from itself with other weights."""
    written: list[tuple[int, int] | None] = []
    for name in (CONFIG, WEIGHTS):
        try:
            found = os.stat(path / name)
        except OSError:
            written.append(None)
        else:
            written.append((found.st_ino, found.st_mtime_ns))
    return written


def _load(
    path: Path, model: Program | None, guide: Program | None, allowed: Trust, results: bool
) -> Run:
    config = read_config(path)
    missing = [role for role, program in (("model", model), ("guide", guide)) if program is None]
    for role in missing:
        _require_built(path, config, role)
    if missing:  # all that the folder names, before anything is imported
        given_too = {"model", "model_guide"} if model is not None else {"guide"} - {*missing}
        allowed.check(config, [role for role in ROLES if role not in given_too])
    if results and "max_epochs" in config and not (path / METRICS).is_file():
        warnings.warn(
            f"{path / METRICS} is missing: how the training went is not known, and the run's history is empty",
            stacklevel=3,
        )
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn, and replaced below
        given = model
        if model is None:
            model = _rebuild(path, config, "model", None, allowed)
            if "model_guide" in config:
                _rebuild(path, config, "model_guide", model, allowed)
                keep_guide(model)
        if guide is None:
            guide = _rebuild(path, config, "guide", model, allowed)
        elif given is None:
            attach_guide(model, guide)
    weights = read_weights(path, model, guide, allowed)
    if results:
        _require_results_of(path, config, weights)
    for module in Pair.of(model, guide).modules().values():
        module.eval()
    return Run(
        path=path,
        config=config,
        model=model,
        guide=guide,
        history=read_history(path) if results else [],
        evaluation=read_result(path / EVALUATION) if results else None,
        evaluation_rows=read_rows(path) if results else None,
        diagnosis=read_result(path / DIAGNOSIS) if results else None,
        weights_sha256=weights,
    )


def _require_results_of(path: Path, config: Mapping[str, Any], weights: str) -> None:
    """Raises an error for results of other weights that a `Run` holds, and warns of those that it does not.

    Raises:
        CorruptFileError: There are some; the message says how to make them again.
    """
    others = results_of_other_weights(path, weights)
    held = {name: others.pop(name) for name in (EVALUATION, DIAGNOSIS) if name in others}
    made_by_command = "data" in config  # `ppl-vae train` made it
    if held:
        first, *more = held
        if made_by_command:
            again = " and ".join(f"`{command}`" for command in held.values())
            remedy = f"{again} make{'' if more else 's'} {'both' if more else 'it'} again"
        else:
            remedy = "evaluate the pair, and save it again with save_run"
        raise CorruptFileError(
            path / first,
            f"it belongs to other weights than those in {WEIGHTS}, which were trained further or replaced: "
            f"{remedy}; load_run(path, results=False) reads the pair alone",
        )
    for name, command in others.items():
        remedy = f"`{command}` makes it again" if made_by_command else "remove it"
        warnings.warn(
            f"{path / name} belongs to other weights than those in {WEIGHTS}: {remedy}",
            stacklevel=4,
        )


def _require_vocabulary(given: Any, model: Program) -> None:
    """Refuses what is no vocabulary of a model, before an earlier run is replaced.

    Raises:
        TypeError: It cannot be saved.
        ValueError: It has another size than the model was built for.
    """
    if isinstance(given, type) or not callable(getattr(given, "save", None)):
        raise TypeError(
            "vocabulary must have a method save(path), as a ppl_vae.data.Vocabulary has, got "
            f"{described(given)}"
        )
    if wrong := _wrong_size(model, given):
        raise ValueError(f"the vocabulary {wrong}; give the one that made the model's rows")


def _wrong_size(model: Program, vocabulary: Any) -> str:
    """What is wrong with the size of a vocabulary, if the model says how many words there are; else empty."""
    words, size = own_attribute(model, "words"), getattr(vocabulary, "__len__", lambda: None)()
    if not isinstance(words, int) or size is None or size == words:
        return ""
    return f"has {size:,} numbers, and {type(model).__name__} was built for words={words:,}"


def _require_results(**given: object) -> None:
    """Refuses what cannot be written, before an earlier run is replaced.

    Raises:
        TypeError: Something is neither a mapping nor a result.
    """
    for name, value in given.items():
        result = name != "config" and hasattr(value, "to_dict")
        if not (value is None or isinstance(value, Mapping) or result):
            kind = "a dict" if name == "config" else "a result, or its to_dict()"
            raise TypeError(f"{name} must be {kind}, got {described(value)}")


def _require_from(given: Any, name: str, function: str, numbers: Sequence[str]) -> None:
    """Refuses the result of another function, which would be read as one of this in the run.

    Raises:
        TypeError: It is a result, and its summary lacks a number.
    """
    result = hasattr(given, "to_dict") and not isinstance(given, Mapping)
    if result and not all(number in given.to_dict() for number in numbers):
        raise TypeError(f"{name} must be what {function} has returned, got {described(given)}")


def _rebuild(
    path: Path, config: Mapping[str, Any], role: str, model: Program | None, trust: Trust
) -> Program:
    _require_built(path, config, role)
    try:
        program: Program = build(config[role], model, role=role, trust=trust)[0]
    except UntrustedError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{path / CONFIG}, {role}: {error}") from error
    return program


def _require_built(path: Path, config: Mapping[str, Any], role: str) -> None:
    spec = config.get(role)
    if not (isinstance(spec, dict) and "class_path" in spec and "init_args" in spec):
        known = spec.get("class_path") if isinstance(spec, dict) else None
        was = f" (it was {known})" if isinstance(known, str) else ""
        raise ValueError(
            f"{path / CONFIG} does not say how the {role} was built{was}: build it as before and "
            "call load_run(path, model, guide); or save the run with "
            f"config={{'{role}': {{'class_path': ..., 'init_args': {{...}}}}, ...}}"
        )
