"""A run on disk: a folder that says how a pair was built, what it has learned and how good it is.

=================== =========================================================================
file                content
=================== =========================================================================
config.yaml         how model and guide are built, options, seed, versions
weights.safetensors modules' state and ``pyro.param`` values; atomic, checksummed, no pickle
metrics.csv         one line an epoch
evaluation.json     what :func:`~ppl_vae.evaluation.evaluate` found, row by row
diagnosis.json      what :func:`~ppl_vae.diagnosis.diagnose` found
posterior.nc        what :func:`~ppl_vae.arviz_bridge.to_arviz` made
plots/              pictures, drawn by ``ppl-vae train``
checkpoints/        what :func:`~ppl_vae.fitting.fit` needs to continue
=================== =========================================================================

Nothing in it is pickled: loading a run imports the classes that config.yaml names and runs no other code.
"""

from __future__ import annotations

import csv
import importlib
import inspect
import io
import json
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyro
import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor
from torch.distributions.constraints import Constraint

from ppl_vae._messages import plain
from ppl_vae._version import __version__
from ppl_vae.attached import introduce, keep_guide
from ppl_vae.checkpoints import CorruptFileError, read_tensors, write_bytes, write_tensors
from ppl_vae.pairs import Pair, Program

if TYPE_CHECKING:
    from ppl_vae.ais import Annealed
    from ppl_vae.diagnosis import Diagnosis
    from ppl_vae.evaluation import Evaluation
    from ppl_vae.fitting import Fit
    from ppl_vae.gaps import Gaps

CONFIG = "config.yaml"
WEIGHTS = "weights.safetensors"
METRICS = "metrics.csv"
EVALUATION = "evaluation.json"
DIAGNOSIS = "diagnosis.json"
ANNEALED = "annealed.json"
GAPS = "gaps.json"
POSTERIOR = "posterior.nc"
PLOTS = "plots"
CHECKPOINTS = "checkpoints"

_RESULTS = (WEIGHTS, METRICS, EVALUATION, DIAGNOSIS, ANNEALED, GAPS, POSTERIOR, PLOTS, CHECKPOINTS)
_PARAM = "param."  # how Pair.state() marks the values of pyro.param


@dataclass(frozen=True)
class Run:
    """A run that was read from disk.

    Attributes:
        path: Its folder.
        config: The content of config.yaml.
        model: The model with its trained weights, in evaluation mode if it is a module.
        guide: The guide, likewise.
        history: One mapping an epoch, from metrics.csv; empty if there is none.
        evaluation: The content of evaluation.json, or None.
        diagnosis: The content of diagnosis.json, or None.
    """

    path: Path
    config: dict[str, Any]
    model: Program
    guide: Program
    history: list[dict[str, float]]
    evaluation: dict[str, Any] | None
    diagnosis: dict[str, Any] | None


def save_run(
    path: str | Path,
    model: Program,
    guide: Program,
    *,
    config: Mapping[str, Any] | None = None,
    fit: Fit | None = None,
    evaluation: Evaluation | Mapping[str, Any] | None = None,
    diagnosis: Diagnosis | Mapping[str, Any] | None = None,
    arviz: Any = None,
    overwrite: bool = False,
) -> None:
    """Writes a pair, and what is known of it, into a folder.

    Args:
        path: The folder; it is made, with its parents.
        model: The model; its ``pyro.param`` values are those of the last ``fit`` of this pair.
        guide: The guide.
        config: What to write into config.yaml. If it holds ``model`` and ``guide``, each as
            ``{"class_path": ..., "init_args": {...}}``, then :func:`load_run` builds them itself; otherwise
            it has to be given them. ``model_guide`` says likewise which guide the model keeps a copy of, if
            it does (a VampPrior, with another guide than it was trained with).
        fit: What ``fit`` returned, for metrics.csv.
        evaluation: What ``evaluate`` returned, or its ``to_dict()`` with additions.
        diagnosis: What ``diagnose`` returned, or its ``to_dict()``.
        arviz: What ``to_arviz`` returned.
        overwrite: Whether a run that is there may be replaced. Its weights and results go, also those that are
            not written anew; files that are no part of a run stay.

    Raises:
        FileExistsError: There is something at ``path`` and ``overwrite`` is False, or it is not a run.
        TypeError: A ``pyro.param`` has a constraint that can not be written as names and numbers.

    Example:
        >>> import tempfile
        >>> from ppl_vae.guides import MeanField
        >>> from ppl_vae.models import VAE
        >>> sizes = {"data_shape": [3], "latent_dim": 2}
        >>> config = {"model": {"class_path": "ppl_vae.models.VAE", "init_args": sizes},
        ...           "guide": {"class_path": "ppl_vae.guides.MeanField", "init_args": sizes}}
        >>> folder = f"{tempfile.mkdtemp()}/run"
        >>> save_run(folder, VAE((3,), latent_dim=2), MeanField((3,), latent_dim=2), config=config)
        >>> load_run(folder).model.latent_dim
        2
    """
    path = Path(path)
    prepare_folder(path, overwrite=overwrite)
    full = dict(config or {})
    for role, program in (("model", model), ("guide", guide)):
        full.setdefault(role, {"class_path": _name_of(program)})
    write_config(path, full)
    write_weights(path, model, guide)
    if fit is not None:
        write_history(path, fit.history)
    write_results(path, evaluation=evaluation, diagnosis=diagnosis, arviz=arviz)


def load_run(path: str | Path, model: Program | None = None, guide: Program | None = None) -> Run:
    """Reads a run, so that its pair evaluates exactly as the one that was saved.

    Args:
        path: The run's folder.
        model: The model, with any weights; built from config.yaml if it is not given. It has to be given if
            config.yaml does not say how (a function, say). The saved weights are put into it in place.
        guide: The guide, likewise.

    Returns:
        The :class:`Run`.

    Raises:
        FileNotFoundError: No such folder, or no run in it.
        CorruptFileError: A file is damaged; the message names it and says what to do.
        ValueError: config.yaml can not be used, or the weights are those of another pair.
    """
    path = Path(path)
    config = read_config(path)
    with torch.random.fork_rng(devices=[]):  # the first weights are drawn, to be replaced at once
        given = model
        if model is None:
            model = _rebuild(path, config, "model", None)
            if "model_guide" in config:
                _rebuild(path, config, "model_guide", model)
                keep_guide(model)
        if guide is None:
            guide = _rebuild(path, config, "guide", model)
        elif given is None:
            introduce(model, guide)
    read_weights(path, model, guide)
    for module in Pair.of(model, guide).modules().values():
        module.eval()
    return Run(
        path=path,
        config=config,
        model=model,
        guide=guide,
        history=_read_csv(path / METRICS),
        evaluation=_read_json(path / EVALUATION),
        diagnosis=_read_json(path / DIAGNOSIS),
    )


# -- the folder ------------------------------------------------------------------------------------------


def prepare_folder(path: Path, *, overwrite: bool, dry_run: bool = False) -> None:
    """Makes an empty run folder; the results of a run that is there go only with ``overwrite``.

    With ``dry_run`` nothing is touched, only found out whether it could be done.

    Raises:
        FileExistsError: There is something at ``path`` and ``overwrite`` is False, or it is not a run.
    """
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file; a run needs a folder of its own")
    if path.exists() and any(path.iterdir()):
        if not (path / CONFIG).is_file():
            raise FileExistsError(
                f"{path} is a folder that holds something else than a run (no {CONFIG}): it is left alone; "
                "choose another folder"
            )
        if not overwrite:
            raise FileExistsError(
                f"there is a run in {path} already: choose another folder, or replace it with overwrite=True "
                "(--overwrite on the command line)"
            )
        if dry_run:
            return
        _empty(path)
    if not dry_run:
        path.mkdir(parents=True, exist_ok=True)


def discard_folder(path: Path) -> None:
    """Removes a run folder, unless there is something in it that is no part of a run."""
    _empty(path)
    (path / CONFIG).unlink(missing_ok=True)
    if not any(path.iterdir()):
        path.rmdir()


def _empty(path: Path) -> None:
    for name in _RESULTS:
        if (path / name).is_dir():
            shutil.rmtree(path / name)
        else:
            (path / name).unlink(missing_ok=True)


def write_config(path: Path, config: Mapping[str, Any]) -> None:
    """Writes config.yaml, with the versions of what matters."""
    text = yaml.safe_dump({**config, "versions": versions()}, sort_keys=False)
    write_bytes(path / CONFIG, text.encode())


def read_config(path: Path) -> dict[str, Any]:
    """Reads config.yaml.

    Raises:
        FileNotFoundError: No such folder, or no run in it.
        CorruptFileError: It is not what this module writes.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"there is no run folder {path}")
    file = path / CONFIG
    if not file.is_file():
        raise FileNotFoundError(f"{path} is not a run: it holds no {CONFIG}")
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CorruptFileError(file, f"this is not YAML ({_one_line(error)})") from error
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
    evaluation: Evaluation | Mapping[str, Any] | None = None,
    diagnosis: Diagnosis | Mapping[str, Any] | None = None,
    annealed: Annealed | Mapping[str, Any] | None = None,
    gaps: Gaps | Mapping[str, Any] | None = None,
    arviz: Any = None,
) -> None:
    """Writes the results that are given, each to a file of its name."""
    results = {EVALUATION: evaluation, DIAGNOSIS: diagnosis, ANNEALED: annealed, GAPS: gaps}
    for name, result in results.items():
        if result is not None:
            plain = result if isinstance(result, Mapping) else result.to_dict()
            write_bytes(path / name, json.dumps(plain).encode())
    if arviz is not None:
        temporary = path / f".{POSTERIOR}"
        arviz.to_netcdf(temporary)
        temporary.replace(path / POSTERIOR)


def write_history(path: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Writes metrics.csv, one line a mapping."""
    write_bytes(path / METRICS, _as_csv(history))


def _as_csv(history: Sequence[Mapping[str, Any]]) -> bytes:
    columns = list(dict.fromkeys(name for epoch in history for name in epoch))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue().encode()


def _read_csv(file: Path) -> list[dict[str, float]]:
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8") as lines:
        try:
            return [
                {name: float(value) for name, value in row.items() if value not in ("", None)}
                for row in csv.DictReader(lines)
            ]
        except (ValueError, TypeError) as error:
            raise CorruptFileError(file, f"a line is not made of numbers ({error})") from error


def _read_json(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptFileError(file, f"this is not JSON ({error}); make it anew") from error
    return dict(content)


# -- building programs from their description ------------------------------------------------------------


def build(spec: Mapping[str, Any], model: Program | None = None) -> tuple[Any, dict[str, Any]]:
    """Makes what a description says: ``{"class_path": "package.Class", "init_args": {...}}``.

    Arguments are checked against the constructor's type hints and docstring by ``jsonargparse``, nested
    descriptions included. A constructor that has a parameter ``model`` is given the model, and a part of the
    model that has a method ``attach_guide`` is given the guide. A path that leads to a function stands for
    the function itself.

    Args:
        spec: The description.
        model: The model, if it is the guide that is described.

    Returns:
        The program, and its description with all defaults filled in.

    Raises:
        ValueError: There is no such class, or its arguments do not fit.

    Example:
        >>> guide, full = build({"class_path": "ppl_vae.guides.MeanField", "init_args": {"data_shape": [3]}})
        >>> full["init_args"]["latent_dim"]
        10
    """
    name = str(spec["class_path"])
    kind = import_by_name(name)
    if not inspect.isclass(kind):
        return kind, {"class_path": name, "init_args": {}}
    given = dict(spec.get("init_args") or {})
    parts: dict[str, Any] = {}
    if model is not None and "model" not in given and "model" in inspect.signature(kind).parameters:
        parts["model"] = model
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, skip=set(parts), fail_untyped=False, instantiate=False)
    try:
        parsed = parser.parse_object(given)
    except (ArgumentError, TypeError, KeyError) as error:
        raise ValueError(f"{name} can not be built: {plain(str(error))}") from error
    resolved = yaml.safe_load(parser.dump(parsed)) or {}
    arguments = parser.instantiate(parsed)
    program: Any = kind(**vars(arguments), **parts)
    if model is not None:
        introduce(model, program)
    return program, {"class_path": name, "init_args": resolved}


def import_by_name(name: str) -> Any:
    """The class or function of a dotted name.

    Raises:
        ValueError: There is none; the message tells apart a missing module and a missing name in it.
    """
    module_name, _, attribute = name.rpartition(".")
    if not module_name:
        raise ValueError(f"'{name}' is not a full name such as package.module.Class")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there; something that it imports is not
        raise ValueError(
            f"there is no module '{error.name}' for '{name}': check the spelling, or put its folder on "
            "PYTHONPATH"
        ) from error
    found = getattr(module, attribute, None)
    if not callable(found):
        raise ValueError(f"module '{module_name}' has no class or function '{attribute}'")
    return found


def _rebuild(path: Path, config: Mapping[str, Any], role: str, model: Program | None) -> Program:
    spec = config.get(role)
    if not (isinstance(spec, dict) and "class_path" in spec and "init_args" in spec):
        known = f" (it was {spec['class_path']})" if isinstance(spec, dict) else ""
        raise ValueError(
            f"{path / CONFIG} does not say how the {role} was built{known}: build it as before and "
            "call load_run(path, model, guide); or save the run with "
            f"config={{'{role}': {{'class_path': ..., 'init_args': {{...}}}}, ...}}"
        )
    try:
        program: Program = build(spec, model)[0]
    except ValueError as error:
        raise ValueError(f"{path / CONFIG}, {role}: {error}") from error
    return program


def _name_of(program: Program) -> str:
    owner = getattr(program, "__self__", program)
    named = owner if inspect.isfunction(owner) else type(owner)
    return f"{named.__module__}.{named.__qualname__}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


# -- weights ---------------------------------------------------------------------------------------------


def write_weights(path: Path, model: Program, guide: Program) -> None:
    """Writes the state of a pair. ``pyro.param`` values are unconstrained; their constraints go along."""
    pair = Pair.of(model, guide)
    constraints = {}
    for name in pair.store["params"]:
        try:
            constraints[name] = _describe_constraint(pair.store["constraints"][name])
        except TypeError as error:
            raise TypeError(f"pyro.param '{name}' can not be saved: {error}") from error
    write_tensors(path / WEIGHTS, pair.state(), {"constraints": constraints})


def read_weights(path: Path, model: Program, guide: Program) -> None:
    """Puts the saved state into a pair."""
    file = path / WEIGHTS
    if (path / CHECKPOINTS).is_dir():
        remedy = f"`ppl-vae train --resume {path}` finishes the run from its checkpoints and writes it again"
    else:
        remedy = "save or train the run again"
    try:
        state, metadata = read_tensors(file)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} has no {WEIGHTS}: {remedy}") from error
    except CorruptFileError as error:
        raise CorruptFileError(file, f"{str(error).removeprefix(f'{file}: ')}; {remedy}") from error
    pair = Pair.of(model, guide)
    for name, described in metadata["constraints"].items():
        leaf = state.pop(_PARAM + name)
        pair.store["params"][name] = leaf.requires_grad_()
        pair.store["constraints"][name] = _as_constraint(described)
    _check_names(file, pair, state)
    pair.load_state(state)
    pair.remember()


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
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _describe_constraint(constraint: Any) -> dict[str, Any]:
    """A constraint as its class's name and the numbers in it."""
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


def _as_constraint(described: Mapping[str, Any]) -> Constraint:
    arguments = {
        name: _as_constraint(value) if isinstance(value, dict) else value
        for name, value in described["init_args"].items()
    }
    kind = import_by_name(described["class_path"])
    if not (isinstance(kind, type) and issubclass(kind, Constraint)):
        raise ValueError(f"{described['class_path']} is not a constraint")
    constraint = kind.__new__(kind)  # constructors do not always take what they keep
    vars(constraint).update(arguments)
    return constraint
