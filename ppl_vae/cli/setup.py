"""Turns options into objects: data, model, guide and objective, with defaults that fit the data."""

from __future__ import annotations

import functools
import inspect
import re
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, NoneType
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from ppl_vae.checks import device_for
from ppl_vae.cli.known import BY_EM, DEFAULTS, DEFAULTS_OF_COLORS, find_known, suited_to
from ppl_vae.cli.mistakes import UsageError
from ppl_vae.cli.options import DATA, FABRIC, PATCHES, TRAINING, add_functions, names
from ppl_vae.cli.output import warn
from ppl_vae.cli.parser import Parser
from ppl_vae.data import (
    Data,
    load_data,
    load_patches,
    oversample_labelled,
    picture_folders,
    rows_alone,
)
from ppl_vae.likelihoods import Likelihood
from ppl_vae.networks import Attributes, GridNetwork, GridPyramid, Labels, Network
from ppl_vae.objectives import Objective
from ppl_vae.pairs import Batch, Batches, DataArguments, Pair, Program
from ppl_vae.runs import CONFIG, ROLES, TYPED, Trust, build, import_by_name, plain
from ppl_vae.runtime import HIDDEN, CorruptFileError, make_fabric, seed_everything
from ppl_vae.training import Fit

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_SHARED = (
    *("latent_dim", "latent_dims", "components", "states", "symbols", "segments"),
    *("network", "latent_network", "classes", "context"),
)
"""Arguments that a guide takes from the model."""

LABEL_WEIGHT = 100.0
"""Weight of the mean of log q(y = label | x) over rows with a label; `analyses/few_labels.py` compares some."""


@dataclass(frozen=True)
class Setup:
    """What a training needs.

    Attributes:
        data: The rows.
        model: The model, with its initial weights.
        guide: The guide, likewise.
        objective: The objective.
        fit_options: Further keywords of `fit` and of `make_fabric`.
        config: All options, with everything that was left open filled in; plain values for YAML.
    """

    data: Data[Any]
    model: Program
    guide: Program
    objective: Objective
    fit_options: dict[str, Any]
    config: dict[str, Any]

    def fabric(self) -> Fabric:
        """The fabric of the training; its options are taken out of `fit_options`."""
        options = {name: self.fit_options.pop(name) for name in FABRIC}
        pair = Pair(self.model, self.guide)
        device = device_for(pair, Batches(self.data.train, pair), options.pop("device"))
        return make_fabric(device, **options)

    def train(self, method: Callable[..., Fit], **where: Any) -> Fit:
        """Trains by `fit` or by `refit_guide`, with further keywords (`run_dir`, `progress`, ...)."""
        return method(
            self.model,
            self.guide,
            _rows_of_training(self.data, self.config),
            objective=self.objective,
            validation=self.data.validation,
            transform=self.data.transform,
            seed=self.config["seed"],
            **self.fit_options,
            **where,
        )


def with_defaults(parser: ArgumentParser, given: Namespace) -> dict[str, Any]:
    """All options of a training as plain values: those given, and the defaults of the others."""
    options = parser.get_defaults()
    for role in DEFAULTS:  # what they leave open depends on the data, see set_up()
        options.pop(role, None)
    options.update(given)
    plain: dict[str, Any] = yaml.safe_load(parser.dump(options))
    for name in (
        "config",
        "print_config",
        "resume",
        "run_dir",
        "overwrite",
        "quiet",
        "debug",
        "versions",
        "made_by",
        "trust",
        "trust_packages",
        "posterior",
        "report",
    ):
        plain.pop(name, None)
    return plain


def load_rows(
    config: Mapping[str, Any], data_dir: str | None = None, *, sentences: bool = False
) -> Data[Any]:
    """The data that a configuration names; `sentences`: whether its run has a vocabulary, for the message."""
    if "data" not in config and sentences:
        raise ValueError(
            "the run's config.yaml names no data: it was saved from Python, and its rows are sentences. "
            "`ppl-vae evaluate`, `diagnose` and `export` take some with --text FILE, one a line; in Python, "
            "they are run.vocabulary.rows(sentences), with run = ppl_vae.load_run(RUN)"
        )
    if "data" not in config:
        raise ValueError(
            "the run's config.yaml names no data: it was saved from Python, so that only load_run can use it "
            "there; add `data: NAME`, as `ppl-vae train --data` takes it, if there is such a name"
        )
    if of_photos(config):
        kept = {name: config[name] for name in names(PATCHES) if name in config}
        return load_patches(config["data"], **kept, seed=config.get("seed", 0))
    options = {name: config[name] for name in names(DATA) if name in config}
    if data_dir is not None:
        options["data_dir"] = data_dir
    with warnings.catch_warnings():
        # A training warns of them, too, and other commands have nothing to do with them.
        warnings.filterwarnings("ignore", ".*(no row of|tells no training row)")
        return load_data(config["data"], **options, seed=config.get("seed", 0))


def of_photos(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is one of `colorize train`: its data are patches of photos."""
    # `ppl-vae train` has patches, too, but takes photos at their own size.
    return "longest" in config


def data_paths(config: Mapping[str, Any]) -> list[Path]:
    """The file or the folders of the data that a configuration names; empty for those known by a name alone."""
    name = str(config.get("data", ""))
    if not name.startswith("folder:"):
        return (
            [Path(name).expanduser().resolve()]
            if name.lower().endswith((".npy", ".npz", ".pt"))
            else []
        )
    path = Path(name.removeprefix("folder:")).expanduser()
    try:
        return [part.resolve() for part in picture_folders(path)]
    except ValueError:  # a part of it is missing by now
        return [path.resolve()]


def checked(run: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The options in the config.yaml of a run, which people edit: those of a wrong type are named.

    Args:
        run: The run folder, for the message.
        config: Its configuration, in which only names have been found that may be imported.

    Raises:
        CorruptFileError: An option has a value that it cannot have.
    """
    parser = Parser()
    own: dict[str, Any] = {"data": str, "seed": int, "num_samples": int}
    own |= {"start_from": str | None, "start_parts": str | None, "labelled_share": float}
    for name, kind in own.items():
        parser.add_argument(f"--{name}", type=kind)
    data = PATCHES if of_photos(config) else DATA
    add_functions(parser, (*data, *TRAINING))
    values = [n for n in (*own, *names(data)) if n in config]
    objects = [n for n in names(TRAINING) if n in config]  # which set_up makes
    try:
        parsed = parser.parse_object({name: config[name] for name in (*values, *objects)})
    except (ArgumentError, TypeError, ValueError, LookupError) as error:
        raise CorruptFileError(run / CONFIG, plain(str(error))) from error
    return {**config, **{name: parsed[name] for name in values}}


def set_up(
    options: Mapping[str, Any],
    model: Program | None = None,
    trust: Mapping[str, Trust] = MappingProxyType({}),
) -> Setup:
    """Loads the data and builds model, guide and objective from the options of `with_defaults`.

    What a constructor asks for and the options leave open is filled in: `data_shape` from the data, the
    `likelihood` that suits them, the guide's `latent_dim` and `network` from the model, the guide's
    `model`. The result's `config` holds all of it, so that it needs no filling in again. A model that
    is there already, built from these options, is taken as it is. `trust` says for each option that comes from
    a run what it may name; the others were typed.
    """
    data_options = names(PATCHES if of_photos(options) else DATA)
    first = ("data", *data_options, "model", "guide", "objective", *names(TRAINING))
    config: dict[str, Any] = {n: options.get(n) for n in first if n in options or n in DEFAULTS}
    config |= options
    data = load_rows(config)
    seed_everything(config["seed"])
    shape = {"data_shape": list(data.shape)}

    def make(role: str, suggestions: Mapping[str, Any], model: Program | None = None) -> Any:
        allowed = trust.get(role, TYPED)
        allowed.check(config, [role])
        spec = fill_in(config, role, suggestions, allowed)
        try:
            return build(spec, model, role=role, trust=allowed)
        except (TypeError, ValueError) as error:
            if missing := missing_arguments(error, spec["class_path"]):
                kind = str(spec["class_path"]).rpartition(".")[2]
                options = " and ".join(f"--{role}.{name}" for name in missing)
                one = len(missing) == 1
                raise UsageError(
                    f"{options} {'is' if one else 'are'} missing: {kind} needs {'it' if one else 'them'}"
                ) from error
            raise

    if model is None:
        suggestions = {**shape, "likelihood": _likelihood_for(data), **_context_of(data)}
        model, config["model"] = make("model", suggestions)
    of_model = config["model"]["init_args"]
    shared = {name: of_model[name] for name in _SHARED if name in of_model}
    guide, config["guide"] = make("guide", {**shape, **shared}, model)
    _require_as_many(model, guide, data)
    rows = _rows_of_training(data, config)
    objective, config["objective"] = make("objective", _weight_of_labels(rows))
    assert isinstance(objective, Objective)
    made = training_options(config, trust)
    return Setup(data, model, guide, objective, made, config)


def training_options(
    config: Mapping[str, Any], trust: Mapping[str, Trust] = MappingProxyType({})
) -> dict[str, Any]:
    """The keywords of `fit` and of `make_fabric` that a configuration names, with what is made of classes.

    Raises:
        UsageError: A class lacks an argument.
    """
    parser = Parser()
    add_functions(parser, TRAINING)
    training = {n: config[n] for n in names(TRAINING) if n in config}
    for name in training:
        trust.get(name, TYPED).check(training, [name])
    chosen = parser.parse_object(training)
    for name in training:
        trust.get(name, TYPED).check_parsed(chosen.get(name), name if name in ROLES else "part")
        if isinstance(spec := chosen.get(name), Namespace) and "class_path" in spec:
            kind = import_by_name(spec.class_path)
            passed = list(inspect.signature(kind).parameters)[:1]  # what `fit` passes
            arguments = vars(spec.get("init_args") or Namespace())  # type: ignore[no-untyped-call]
            _require_all(f"--{name}", spec.class_path, arguments, passed)
    made = {name: _called(value) for name, value in vars(parser.instantiate(chosen)).items()}
    own = made["optimizer"]
    if made["learning_rate"] is not None and isinstance(own, functools.partial):
        # The parser has filled in the default of the class.
        kept = {n: value for n, value in own.keywords.items() if n != "lr"}
        made["optimizer"] = functools.partial(own.func, *own.args, **kept)
    return made


def missing_arguments(error: Exception, class_path: str) -> list[str]:
    """The arguments that a class lacks, of which its own signature does not tell (`*args, **kwargs`)."""
    said = str(error)
    if listed := re.search(r"the following arguments are required: ([\w., ]+)$", said):
        return listed[1].split(", ")
    own = re.search(r"(\w+)\.__init__\(\) missing \d+ required [\w-]+ arguments?: (.+)", said)
    kind = import_by_name(class_path)
    above = [base.__name__ for base in kind.__mro__] if inspect.isclass(kind) else []
    return re.findall(r"'(\w+)'", own[2]) if own and own[1] in above else []


def _called(value: Any) -> Any:
    """The class that is called, with its arguments, without the function of jsonargparse around it."""
    if isinstance(value, functools.partial) and value.func.__module__.startswith("jsonargparse"):
        kind, *own = [a for a in value.args if not str(a.__module__).startswith("jsonargparse")]
        return functools.partial(kind, *own, **value.keywords)
    return value


def fill_in(
    config: Mapping[str, Any], role: str, suggestions: Mapping[str, Any], trust: Trust
) -> dict[str, Any]:
    """The description of a role's object, with suggestions for the arguments that were left open."""
    spec = config.get(role) or {"class_path": _default(role, config)}
    if isinstance(spec, str):
        spec = {"class_path": spec}
    kind = trust.resolve(spec["class_path"], role)
    arguments = dict(spec.get("init_args") or {})
    if inspect.isclass(kind):
        parameters = inspect.signature(kind).parameters
        for name, value in suggestions.items():
            if name in parameters and name not in arguments and _suits(kind, name):
                arguments[name] = value
    _require_all(f"--{role}", spec["class_path"], arguments, {"model"})
    return {"class_path": spec["class_path"], "init_args": arguments}


def _default(role: str, config: Mapping[str, Any]) -> str:
    """The class of a role that is left open: one that suits the model."""
    defaults = DEFAULTS_OF_COLORS if of_photos(config) else DEFAULTS
    model = config.get("model") or {}
    name = _class_path(model)
    colors = (model.get("init_args") or {}).get("colors") if isinstance(model, Mapping) else None
    return suited_to(name, _class_path(colors)).get(role, defaults[role])


def _class_path(spec: Any) -> str:
    return str(spec.get("class_path", "") if isinstance(spec, Mapping) else spec or "")


def _require_all(
    option: str, class_path: str, arguments: Mapping[str, Any], given: Collection[str] = ()
) -> None:
    """Raises an error that names the options which a class, and the classes among its arguments, lack."""
    kind = import_by_name(class_path)
    if inspect.isclass(kind):
        for name, parameter in inspect.signature(kind).parameters.items():
            variable = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            if variable or parameter.default is not parameter.empty or name in given:
                continue
            if arguments.get(name) is None and NoneType not in get_args(_hint(kind, name)):
                raise UsageError(f"{option}.{name} is missing: {kind.__name__} needs it")
    for name, value in arguments.items():
        if isinstance(value, Mapping) and "." in str(value.get("class_path")):
            _require_all(f"{option}.{name}", value["class_path"], value.get("init_args") or {})


def _suits(kind: type, name: str) -> bool:
    """Whether a parameter of this name means what ours means by it: networks and likelihoods by their type.

    A model with `likelihood_of_data = False` has a likelihood of its own, whatever the data are.
    """
    if name == "likelihood" and not getattr(kind, "likelihood_of_data", True):
        return False
    ours = {"network": (Network, GridNetwork, GridPyramid), "likelihood": (Likelihood,)}.get(name)
    if ours is None:
        return True
    hint = _hint(kind, name)
    return not {hint, *get_args(hint)}.isdisjoint(ours)


def _hint(kind: type, name: str) -> Any:
    """The type of a constructor's parameter; None if it is not known."""
    try:
        return get_type_hints(kind.__init__).get(name)  # type: ignore[misc]
    except NameError:
        return None


def _require_as_many(model: Program, guide: Program, data: Data[Any]) -> None:
    """Raises an error for a model that takes labels where there are none, or none where there are some.

    It warns of a model that is to find all classes by itself.

    Raises:
        UsageError: It does, or some of the labels that it needs are hidden.
    """
    takes = DataArguments.of(Pair(model, guide))
    name = type(model).__name__
    if takes.names is None:
        return
    if takes.required > 1 and not isinstance(data.train, tuple):
        raise UsageError(
            f"{name} takes rows and what they come with ({', '.join(takes.names)}): add --labels true, for "
            "data that have labels"
        )
    if len(takes.names) < 2 and isinstance(data.train, tuple):
        others = "--model ConditionalVAE or SemiSupervisedVAE"
        by_em = find_known("model", name, kind=BY_EM) is not None
        instead = f" (`ppl-vae train {others}` takes labels)" if by_em else f", or choose {others}"
        raise UsageError(
            f"{name} takes the rows alone ({takes.names[0]}): leave out --labels{instead}"
        )
    context = getattr(model, "context", None)
    told = data.train[1] if isinstance(data.train, tuple) else None
    if told is not None and isinstance(context, Labels) and told.dim() > 1:
        other = "" if name == "ConditionalVAE" else ", or choose --model ConditionalVAE"
        raise UsageError(
            f"{name} is built with {context}, a class of each row, but the labels of {data.name} are "
            f"attributes, of shape {tuple(told.shape)}: save whole numbers from 0 as y, one for each "
            f"row{other}, which takes attributes if no --model.context says otherwise"
        )
    if told is not None and isinstance(context, Attributes) and told.dim() == 1:
        raise UsageError(
            f"{name} is built with {context}, but the labels of {data.name} are classes, one whole number of "
            "each row: leave out --model.context and --guide.context, or save y as a column of real numbers"
        )
    if not isinstance(context, Labels):
        return
    if takes.required > 1 and any(bool((y == HIDDEN).any()) for _, y in (data.train, data.test)):
        raise UsageError(
            f"{name} needs the label of every row, and some are hidden (-1): --labels true, if the data have "
            "all labels, or --model SemiSupervisedVAE"
        )
    if takes.required < 2 and not isinstance(data.train, tuple):
        warn(
            f"{name} is trained without any label, so that its classes are those that it finds by itself: "
            "--labels 100 tells 100 labels, if the data have any"
        )


def _context_of(data: Data[Any]) -> dict[str, Any]:
    """What a conditional model is built with for these labels; nothing if the rows come without any."""
    labels = data.train_labels
    if not isinstance(data.train, tuple) or labels is None:
        return {}
    if data.train[1].dim() > 1:
        attributes = {"count": data.train[1].shape[-1]}
        return {"context": {"class_path": "ppl_vae.networks.Attributes", "init_args": attributes}}
    every = (labels, data.validation_labels, data.test_labels)
    classes = {"classes": 1 + max(int(each.max()) for each in every if each is not None)}
    return {"context": {"class_path": "ppl_vae.networks.Labels", "init_args": classes}, **classes}


def _rows_of_training(data: Data[Any], config: Mapping[str, Any]) -> Batch:
    """The rows that a training sees: those with a label are repeated if that is asked for.

    Raises:
        UsageError: There are no rows with a label among others, or the share is none.
    """
    share = config.get("labelled_share") or 0.0
    rows: Batch = data.train
    if not share:
        return rows
    if not 0 < share < 1:
        raise UsageError(f"--labelled_share must be from 0 to below 1, got {share}")
    labels = rows[1] if isinstance(rows, tuple) else None
    if labels is None or labels.dim() > 1 or not bool((labels == HIDDEN).any()):
        raise UsageError(
            f"--labelled_share {share} repeats the rows with a label where others have none, and here "
            f"{'no label is told' if labels is None else 'each row has its label'}: give a number of labels, "
            "such as --labels 100, or leave it out"
        )
    return oversample_labelled(rows[0], labels, share)


def _weight_of_labels(rows: Batch) -> dict[str, float]:
    """The weight of `SemiSupervisedELBO`: that of the mean over rows with labels, times `LABEL_WEIGHT`."""
    if not isinstance(rows, tuple):
        return {}
    known = int((rows[1] != HIDDEN).sum())
    return {"classification": LABEL_WEIGHT * len(rows[1]) / max(known, 1)}


def _likelihood_for(data: Data[Any]) -> dict[str, Any]:
    """The likelihood whose support fits the data."""
    arguments: dict[str, Any] = {}
    if data.levels is None:
        name = "LearnedGaussian"
    elif data.levels == 2:
        name = "Bernoulli"
    elif float(rows_alone(data.train).max()) > 1:
        name, arguments = "Binomial", {"total_count": data.levels - 1}
    else:
        name, arguments = "DiscretizedLogistic", {"levels": data.levels}
    return {"class_path": f"ppl_vae.likelihoods.{name}", "init_args": arguments}
