"""What the command line can be told, and what it means for a pair: parsers, and defaults that fit the data."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, cast, get_args, get_type_hints

import pyro
import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from ppl_vae import guides, models
from ppl_vae.data import Data, load_data
from ppl_vae.em import fit_em
from ppl_vae.fitting import fit
from ppl_vae.gumbel import GumbelSoftmaxELBO
from ppl_vae.likelihoods import Likelihood
from ppl_vae.models.priors import Prior
from ppl_vae.networks import Network
from ppl_vae.objectives import Objective
from ppl_vae.pairs import Program
from ppl_vae.runs import build, import_by_name

_DATA_SKIP: set[str | int] = {"name", "seed"}
_FIT_SKIP: set[str | int] = {
    *("model", "guide", "x", "objective", "validation", "transform"),
    *("seed", "fabric", "run_dir", "resume", "progress"),
}
_FIT = [name for name in inspect.signature(fit).parameters if name not in _FIT_SKIP]
_EM_SKIP: set[str | int] = {
    *("model", "x", "guide", "online", "m_step", "initialize", "seed", "progress"),
}
EM_OPTIONS = [name for name in inspect.signature(fit_em).parameters if name not in _EM_SKIP]
_DATA = [name for name in inspect.signature(load_data).parameters if name not in _DATA_SKIP]

# The classes that go by their short names.
_KNOWN: dict[str, dict[str, type]] = {
    "model": {
        name: getattr(models, name)
        for name in models.__all__
        if not issubclass(getattr(models, name), Prior)
    },
    "guide": {
        name: getattr(guides, name)
        for name in guides.__all__
        if "guide" not in inspect.signature(getattr(guides, name)).parameters
    },
    "objective": {
        kind.__name__: kind
        for kind in cast("list[type]", [*Objective.__subclasses__(), GumbelSoftmaxELBO])
    },
}
_FILLED_IN = ("data_shape", "latent_dim", "network", "likelihood")  # see set_up()
# What a guide takes from the model.
_SHARED = (
    *("latent_dim", "latent_dims", "components", "states", "symbols"),
    *("network", "latent_network"),
)
_DEFAULTS = {
    "model": "ppl_vae.models.VAE",
    "guide": "ppl_vae.guides.MeanField",
    "objective": "ppl_vae.objectives.ELBO",
}


class UsageError(ValueError):
    """Options that can not be understood, or not together."""


class _HelpFormatter(DefaultHelpFormatter):  # type: ignore[misc, unused-ignore]
    """Help without markup, and without types and lists that say nothing to a reader."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = str(super()._get_help_string(action))
        if "(default: " in (action.help or ""):  # it says it better
            text = action.help or ""
        known = re.search(r", known subclasses: .*\)$", text)
        if known and known[0].count(",") > 12:
            text = text.replace(known[0], ")")
        role, _, name = action.dest.rpartition(".")
        if role in ("model", "guide") and name in _FILLED_IN:
            filled = "(default: what fits the data and the model, type"
            text = text.replace("(required, type", filled)
        return re.sub(r":\w+:`(.*?)`", r"\1", text).replace("``", "")


class Parser(ArgumentParser):  # type: ignore[misc, unused-ignore]
    """A parser that requires nothing: what a constructor needs may come from the data or from the model."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"formatter_class": _HelpFormatter, **kwargs})

    def validate(self, *args: Any, **kwargs: Any) -> None:
        """Checks types and names, but not that all that is required is there."""
        super().validate(*args, **{**kwargs, "skip_required": True})


# -- parsers ---------------------------------------------------------------------------------------------


def make_parser(command: str, description: str, arguments: Sequence[str] = ()) -> ArgumentParser:
    """The parser of a subcommand.

    Args:
        command: Its name.
        description: What it does.
        arguments: The arguments that will be parsed: classes named in them become choices.
    """
    parser = Parser(
        prog=f"ppl-vae {command}",
        description=description,
        exit_on_error=False,
        print_config=None,
    )
    _FILL[command](parser, arguments)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--debug", action="store_true", help="tracebacks of errors")
    return parser


def completion_parser(commands: Mapping[str, str]) -> ArgumentParser:
    """The whole command line as one parser, for shell completion."""
    parser = Parser(prog="ppl-vae")
    subcommands = parser.add_subcommands()
    for name, description in commands.items():
        subcommands.add_subcommand(name, make_parser(name, description), help=description)
    return parser


def _fill_train(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    _add_config(parser)
    parser.add_argument(
        "--resume",
        type=str,
        metavar="RUN",
        help="continue an interrupted run; only max_epochs may change",
    )
    _add_run_dir(parser)
    _add_num_samples(parser)
    pair = parser.add_argument_group("The pair, and what is maximised")
    for role in _KNOWN:
        _add_role(pair, role, arguments)
    _add_data(parser)
    parser.add_function_arguments(fit, skip=_FIT_SKIP)
    parser.set_defaults({"max_epochs": 200, "patience": 30})
    parser.add_argument(
        "--versions", type=dict, help=argparse.SUPPRESS
    )  # a run's config.yaml has them


def _fill_em(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    _add_config(parser)
    _add_run_dir(parser)
    _add_role(parser, "model", arguments, "ppl_vae.models.GaussianMixture")
    _add_data(parser)
    parser.add_function_arguments(fit_em, skip=_EM_SKIP)
    parser.add_argument("--versions", type=dict, help=argparse.SUPPRESS)


def _fill_refit(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    parser.add_argument(
        "run", type=str, metavar="RUN", help="folder of the run whose model is kept"
    )
    _add_run_dir(parser)
    _add_num_samples(parser)
    for role in ("guide", "objective"):
        _add_role(parser, role, arguments)
    parser.add_function_arguments(fit, skip=_FIT_SKIP)
    parser.set_defaults({"max_epochs": 200, "patience": 30})


def _fill_evaluate(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    _add_run(parser)
    parser.add_argument(
        "--method",
        choices=("importance", "ais"),
        default="importance",
        help="log p(x) by importance sampling from the guide, or by annealed importance sampling: slower, and "
        "right where the guide is poor",
    )
    parser.add_argument("--num_samples", type=int, default=1000, help="importance samples a row")
    _add_annealing(parser)
    parser.add_argument(
        "--from_prior", action="store_true", help="chains start at the prior, not at the guide"
    )
    _add_max_rows(parser, None)
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, ...")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the run's evaluation.json or annealed.json",
    )


def _fill_gaps(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    _add_run(parser)
    parser.add_argument(
        "--truth",
        choices=("importance", "ais"),
        default="importance",
        help="where log p(x) comes from, if the model does not know it: importance sampling from each row's "
        "best q, or annealed importance sampling",
    )
    parser.add_argument("--num_samples", type=int, default=1000, help="samples a row")
    _add_annealing(parser)
    _add_max_rows(parser, 100)
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, ...")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace gaps.json and its picture"
    )


def _fill_diagnose(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    _add_run(parser)
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, ...")
    parser.add_argument("--overwrite", action="store_true", help="replace the run's diagnosis.json")


def _fill_sample(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    _add_run(parser)
    parser.add_argument("--num", type=int, default=64, help="number of samples")
    _add_output(
        parser, "a picture (.png, .pdf, .svg) or arrays z, mean and x (.npz)", "RUN/samples.png"
    )


def _fill_compare(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    parser.add_argument(
        "runs", nargs="+", type=str, metavar="RUN", help="run folders; the first is compared to"
    )
    _add_output(parser, "the picture", "comparison.png")


def _fill_export(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    _add_run(parser)
    parser.add_argument("--num_samples", type=int, default=1000, help="importance samples a row")
    _add_output(parser, "netCDF file for ArviZ", "RUN/posterior.nc")


_FILL: dict[str, Callable[[ArgumentParser, Sequence[str]], None]] = {
    "train": _fill_train,
    "em": _fill_em,
    "refit": _fill_refit,
    "gaps": _fill_gaps,
    "evaluate": _fill_evaluate,
    "diagnose": _fill_diagnose,
    "sample": _fill_sample,
    "compare": _fill_compare,
    "export": _fill_export,
}


def _add_run(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=str, metavar="RUN", help="run folder")
    parser.add_argument(
        "--data_dir", type=str, help="where torchvision's files are now, if they have moved"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all draws")


def _add_config(parser: ArgumentParser) -> None:
    parser.add_argument("--config", action="config", help="YAML file with any of these options")
    parser.add_argument(
        "--print_config",
        action="store_true",
        help="print all options as YAML for --config, and stop",
    )


def _add_run_dir(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--run_dir", type=str, help="run folder (default: runs/<data>-<model>-<guide>-<time>)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the run in run_dir")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and draws")


def _add_num_samples(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--num_samples", type=int, default=1000, help="importance samples a test row, for log p(x)"
    )


def _add_data(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        type=str,
        default="digits",
        help="digits, MNIST, FashionMNIST, KMNIST, EMNIST, CIFAR10, SVHN, folder:PATH, or an array file "
        "PATH.npy, PATH.npz, PATH.pt",
    )
    parser.add_function_arguments(load_data, skip=_DATA_SKIP)


def _add_annealing(parser: ArgumentParser) -> None:
    parser.add_argument("--num_chains", type=int, default=16, help="chains a row, for ais")
    parser.add_argument("--num_steps", type=int, default=200, help="temperatures, for ais")


def _add_max_rows(parser: ArgumentParser, default: int | None) -> None:
    shown = "all" if default is None else str(default)
    parser.add_argument(
        "--max_rows",
        type=int,
        default=default,
        help=f"use the first so many test rows alone (default: {shown})",
    )


def _add_output(parser: ArgumentParser, what: str, default: str) -> None:
    parser.add_argument(
        "-o", "--output", type=str, metavar="FILE", help=f"{what} (default: {default})"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace FILE")


def _add_role(parser: Any, role: str, arguments: Sequence[str], default: str | None = None) -> None:
    """Adds an argument for an object that is given by the name of its class."""
    known = _KNOWN[role]
    default = default or _DEFAULTS[role]
    classes = []
    for name in _named(role, arguments) or [default]:
        if "." not in name and name not in known:
            raise UsageError(
                f"--{role} {name}: there is no {role} of this name; known are {', '.join(known)}, "
                "and any importable class by its full name, package.module.Class"
            )
        try:
            found = known[name] if name in known else import_by_name(name)
        except ValueError as error:
            raise UsageError(f"--{role} {name}: {error}") from error
        if role == "objective" and not (inspect.isclass(found) and issubclass(found, Objective)):
            raise UsageError(f"--objective {name}: this is no subclass of {_name(Objective)}")
        if not inspect.isclass(found):
            parser.add_argument(f"--{role}", type=Callable, help="a Pyro program")
            return
        classes.append(found)
    parser.add_subclass_arguments(
        tuple(dict.fromkeys(classes)),
        role,
        as_group=False,
        skip={"model"},  # a guide that asks for the model is given it
        default={"class_path": _name(classes[-1])},
        instantiate=False,
        fail_untyped=False,
        metavar="CLASS",
        help=f"{', '.join(known)}, or the full name of any importable class; its arguments are "
        f"--{role}.NAME VALUE, and --{role}.help CLASS lists them (default: "
        f"{default.rpartition('.')[2]})",
    )


def _named(role: str, arguments: Sequence[str]) -> list[str]:
    """The classes that the arguments, and the configuration files among them, name for a role."""
    named: list[str | None] = []
    for i, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if not equals:
            value = arguments[i + 1] if i + 1 < len(arguments) else ""
        if option in (f"--{role}", f"--{role}.class_path", f"--{role}.help"):
            named.append(_class_path(value))
        elif option == "--config":
            named.append(_class_path(_load_yaml(value).get(role)))
    return [name for name in named if name and not name.startswith("-")]


def _class_path(value: Any) -> str | None:
    if isinstance(value, str) and value.startswith("{"):
        value = yaml.safe_load(value)
    if isinstance(value, Mapping):
        value = value.get("class_path")
    return value if isinstance(value, str) and not Path(value).is_file() else None


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _load_yaml(file: str) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):  # the parser will complain of it
        return {}
    return content if isinstance(content, Mapping) else {}


# -- from options to objects -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Setup:
    """What a training needs.

    Attributes:
        data: The rows.
        model: The model, with its initial weights.
        guide: The guide, likewise.
        objective: The objective.
        fit_options: Further keywords of ``fit``.
        config: All options, with everything that was left open filled in; plain values for YAML.
    """

    data: Data
    model: Program
    guide: Program
    objective: Objective
    fit_options: dict[str, Any]
    config: dict[str, Any]


def with_defaults(parser: ArgumentParser, given: Namespace) -> dict[str, Any]:
    """All options of a training as plain values: those given, and the defaults of the others."""
    options = parser.get_defaults()
    for role in _KNOWN:  # what they leave open depends on the data, see set_up()
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
    ):
        plain.pop(name, None)
    return plain


def load_rows(config: Mapping[str, Any], data_dir: str | None = None) -> Data:
    """The data that a configuration names."""
    if "data" not in config:
        raise ValueError(
            "the run's config.yaml names no data: it was saved from Python, so that only load_run can use it "
            "there; add `data: NAME`, as `ppl-vae train --data` takes it, if there is such a name"
        )
    options = {name: config[name] for name in _DATA if name in config}
    if data_dir is not None:
        options["data_dir"] = data_dir
    return load_data(config["data"], **options, seed=config.get("seed", 0))


def set_up(options: Mapping[str, Any], model: Program | None = None) -> Setup:
    """Loads the data and builds model, guide and objective from :func:`with_defaults`'s options.

    What a constructor asks for and the options leave open is filled in: ``data_shape`` from the data, the
    ``likelihood`` that suits them, the guide's ``latent_dim`` and ``network`` from the model, the guide's
    ``model``. The result's ``config`` holds all of it, so that it needs no filling in again. A model that
    is there already, built from these options, is taken as it is.
    """
    first = ("data", *_DATA, "model", "guide", "objective", *_FIT)
    config: dict[str, Any] = {n: options.get(n) for n in first if n in options or n in _KNOWN}
    config |= options
    data = load_rows(config)
    pyro.set_rng_seed(config["seed"])
    shape = {"data_shape": list(data.shape)}
    if model is None:
        wanted = _fill_in(config, "model", {**shape, "likelihood": _likelihood_for(data)})
        model, config["model"] = build(wanted)
    of_model = config["model"]["init_args"]
    shared = {name: of_model[name] for name in _SHARED if name in of_model}
    guide, config["guide"] = build(_fill_in(config, "guide", {**shape, **shared}), model)
    objective, config["objective"] = build(_fill_in(config, "objective", {}))
    parser = Parser(exit_on_error=False)
    parser.add_function_arguments(fit, skip=_FIT_SKIP)
    chosen = parser.parse_object({name: config[name] for name in _FIT if name in config})
    assert isinstance(objective, Objective)
    return Setup(data, model, guide, objective, vars(parser.instantiate(chosen)), config)


def _fill_in(
    config: Mapping[str, Any], role: str, suggestions: Mapping[str, Any]
) -> dict[str, Any]:
    """The description of a role's object, with suggestions for the arguments that were left open."""
    spec = config.get(role) or {"class_path": _DEFAULTS[role]}
    if isinstance(spec, str):
        spec = {"class_path": spec}
    kind = import_by_name(spec["class_path"])
    arguments = dict(spec.get("init_args") or {})
    if inspect.isclass(kind):
        parameters = inspect.signature(kind).parameters
        for name, value in suggestions.items():
            if name in parameters and name not in arguments and _suits(kind, name):
                arguments[name] = value
    _require_all(f"--{role}", spec["class_path"], arguments, {"model"})
    return {"class_path": spec["class_path"], "init_args": arguments}


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
    """Whether a parameter of this name means what ours means by it: networks and likelihoods by their type."""
    ours = {"network": Network, "likelihood": Likelihood}.get(name)
    if ours is None:
        return True
    hint = _hint(kind, name)
    return hint is ours or ours in get_args(hint)


def _hint(kind: type, name: str) -> Any:
    """The type of a constructor's parameter; None if it is not known."""
    try:
        return get_type_hints(kind.__init__).get(name)  # type: ignore[misc]
    except NameError:
        return None


def _likelihood_for(data: Data) -> dict[str, Any]:
    """The likelihood whose support is what the data are made of."""
    arguments: dict[str, Any] = {}
    if data.levels is None:
        name = "LearnedGaussian"
    elif data.levels == 2:
        name = "Bernoulli"
    elif float(data.train.max()) > 1:
        name, arguments = "Binomial", {"total_count": data.levels - 1}
    else:
        name, arguments = "DiscretizedLogistic", {"levels": data.levels}
    return {"class_path": f"ppl_vae.likelihoods.{name}", "init_args": arguments}
