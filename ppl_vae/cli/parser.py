"""The parsers of the subcommands."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from ppl_vae.cli.roles import (
    FILLED_IN,
    KNOWN,
    add_role,
)
from ppl_vae.data import load_data
from ppl_vae.em import fit_em
from ppl_vae.runtime import make_fabric
from ppl_vae.training import fit

DATA_SKIP: set[str | int] = {"name", "seed"}


FIT_SKIP: set[str | int] = {
    *("model", "guide", "x", "objective", "validation", "transform"),
    *("seed", "fabric", "run_dir", "resume", "progress"),
}


FABRIC_OPTIONS = list(inspect.signature(make_fabric).parameters)


FIT_OPTIONS = [name for name in inspect.signature(fit).parameters if name not in FIT_SKIP] + [
    name
    for name in FABRIC_OPTIONS
    if name != "device"  # which `fit` has as well
]


EM_SKIP: set[str | int] = {
    *("model", "x", "guide", "online", "m_step", "initialize", "seed", "progress"),
}


EM_OPTIONS = [name for name in inspect.signature(fit_em).parameters if name not in EM_SKIP]


DATA_OPTIONS = [name for name in inspect.signature(load_data).parameters if name not in DATA_SKIP]


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
        if role in ("model", "guide") and name in FILLED_IN:
            filled = "(default: what fits the data and the model, type"
            text = text.replace("(required, type", filled)
        return re.sub(r":\w+:`(.*?)`", r"\1", text).replace("`", "")


class Parser(ArgumentParser):  # type: ignore[misc, unused-ignore]
    """A parser that requires nothing: what a constructor needs may come from the data or from the model."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"formatter_class": _HelpFormatter, **kwargs})

    def validate(self, *args: Any, **kwargs: Any) -> None:
        """Checks types and names, but not that all that is required is there."""
        super().validate(*args, **{**kwargs, "skip_required": True})


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


def add_fit_options(parser: ArgumentParser) -> None:
    """Adds the options of a training: those of `fit`, and those of the fabric that it runs on."""
    parser.add_function_arguments(fit, skip=FIT_SKIP)
    parser.add_function_arguments(make_fabric, skip={"device"})


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
    for role in KNOWN:
        add_role(pair, role, arguments)
    _add_data(parser)
    add_fit_options(parser)
    parser.set_defaults({"max_epochs": 200, "patience": 30})
    parser.add_argument(
        "--versions", type=dict, help=argparse.SUPPRESS
    )  # a run's config.yaml has them


def _fill_em(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    _add_config(parser)
    _add_run_dir(parser)
    add_role(parser, "model", arguments, "ppl_vae.models.GaussianMixture")
    _add_data(parser)
    parser.add_function_arguments(fit_em, skip=EM_SKIP)
    parser.add_argument("--versions", type=dict, help=argparse.SUPPRESS)


def _fill_refit(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    parser.add_argument(
        "run", type=str, metavar="RUN", help="folder of the run whose model is kept"
    )
    _add_run_dir(parser)
    _add_num_samples(parser)
    for role in ("guide", "objective"):
        add_role(parser, role, arguments)
    add_fit_options(parser)
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
    parser.add_function_arguments(load_data, skip=DATA_SKIP)


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
