"""The classes that --model, --guide and --objective accept by their short names."""

from __future__ import annotations

import ast
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppl_vae.cli.mistakes import UsageError, did_you_mean
from ppl_vae.cli.source import (
    Definition,
    derives,
    find,
    is_abstract,
    methods,
    offered,
    parameters,
)
from ppl_vae.runs import CONFIG
from ppl_vae.runtime import MOST_YAML, load_yaml, read_text

DEFAULTS = {
    "model": "ppl_vae.models.VAE",
    "guide": "ppl_vae.guides.MeanField",
    "objective": "ppl_vae.objectives.ELBO",
}
"""The roles, and the default class of each."""

DEFAULTS_OF_COLORS = {
    "model": "ppl_vae.models.IndependentSegments",
    "guide": "ppl_vae.guides.Exact",
    "objective": "ppl_vae.objectives.ELBO",
}
"""The same for models of colors."""

DEFAULTS_OF_PRIORS = {"prior": "ppl_vae.models.PixelCNNPrior"}
"""The same for a prior that is fitted to a trained pair."""

SUITED = {
    "SemiSupervisedVAE": {
        "guide": "ppl_vae.guides.SemiSupervised",
        "objective": "ppl_vae.objectives.SemiSupervisedELBO",
    },
    "HierarchicalVAE": {"guide": "ppl_vae.guides.TopDown"},
    "PottsSegments": {"guide": "ppl_vae.guides.StructuredMeanField"},
    "VQVAE": {"guide": "ppl_vae.guides.QuantizingEncoder"},
    "ConditionalVQVAE": {"guide": "ppl_vae.guides.QuantizingEncoder"},
    "VQVAE2": {"guide": "ppl_vae.guides.HierarchicalQuantizingEncoder"},
    "ConditionalVQVAE2": {"guide": "ppl_vae.guides.HierarchicalQuantizingEncoder"},
    "Autoencoder": {"guide": "ppl_vae.guides.DeltaEncoder"},
    "LatentColors": {"guide": "ppl_vae.guides.WithinPicture"},
}
"""The default classes of other roles for models, or colors of models, that those above do not suit."""

OF_ROWS, BY_EM, OF_COLORS = "rows", "em", "colors"
"""What classes are for: a training on rows, EM, or a training on photos."""

FILLED_IN = ("data_shape", "latent_dim", "network", "likelihood", "context", "classes")
"""Arguments of models and guides that `set_up` fills in."""


def face(role: str) -> str:
    """The package of a role's known classes."""
    return {**DEFAULTS, **DEFAULTS_OF_PRIORS}[role].rpartition(".")[0]


_BY_EM = {"posterior", "log_evidence", "expected_statistics", "maximize"}
"""The methods of a model that `ppl-vae em` can fit: its steps have closed forms."""


_NO_MODELS_OF_ROWS = ("Prior", "CodePrior", "Colors", "SegmentedColors", "Discriminator")
"""Bases of what stands among the models, but is none of the data that `train` loads."""

_FITTED = (
    *("IndependentCodes", "PixelCNNPrior", "TransformerPrior"),
    *("DiagonalNormal", "FlowPrior", "FullNormal", "MixturePrior"),
)
"""The priors that can be fitted to a trained pair: of codes, and of vectors."""

_OF_COLORS = {
    "guide": ("SegmentationEncoder", "StructuredMeanField", "WithinPicture"),
    "objective": ("ElementwiseELBO", "StraightThroughELBO"),
}
"""What suits models of colors alone, and no model of rows."""

_ALSO_OF_COLORS = {
    "guide": ("Exact",),
    "objective": ("ELBO", "GumbelSoftmaxELBO", "ScoreFunctionELBO"),
}
"""What suits both."""


def known(role: str, kind: str = OF_ROWS) -> list[str]:
    """The classes that have short names: no priors, no models of colors, and no guides that need another guide.

    Args:
        role: The role.
        kind: `OF_ROWS`, `BY_EM` (models that EM can fit) or `OF_COLORS` (models of colors, and what suits
            them).

    Example:
        >>> known("objective")[1:3]
        ['ELBO', 'EnumELBO']
        >>> "VAE" in known("model"), "VAE" in known("model", kind=BY_EM)
        (True, False)
    """
    return [n for n, found in offered(face(role)).items() if _has_short_name(role, found, kind)]


def find_known(role: str, name: str, kind: str = OF_ROWS) -> Definition | None:
    """The class that has this short name; None if there is none. Faster than a search in `known`."""
    found = find(face(role), name)
    return found if found and _has_short_name(role, found, kind) else None


def _has_short_name(role: str, definition: Definition, kind: str = OF_ROWS) -> bool:
    if not isinstance(definition.node, ast.ClassDef) or is_abstract(definition):
        return False
    if role == "prior":
        return definition.node.name in _FITTED
    if kind == OF_COLORS:
        name = definition.node.name
        if role == "model":
            return derives(definition, "SegmentedColors")
        return name in _OF_COLORS[role] or name in _ALSO_OF_COLORS[role]
    if kind == BY_EM and not methods(definition) >= _BY_EM:
        return False
    if role == "model":
        return not any(derives(definition, base) for base in _NO_MODELS_OF_ROWS)
    if definition.node.name in _OF_COLORS[role]:
        return False
    if role == "guide":
        return "guide" not in [p.name for p in parameters(definition)]
    return derives(definition, "Objective")


def unknown_name(role: str, name: str, kind: str = OF_ROWS) -> UsageError:
    """The error for a name that is none of the known ones."""
    names = known(role, kind)
    if kind == BY_EM and find_known(role, name):
        return not_by_em(name)
    if kind == OF_ROWS and role != "prior" and find_known(role, name, OF_COLORS):
        full = f"; `ppl-vae refit` of such a run takes its full name, {face(role)}.{name}"
        return UsageError(
            f"--{role} {name}: it is for models of colors, which `ppl-vae colorize train` trains"
            f"{'' if role == 'model' else full}"
        )
    return UsageError(
        f"--{role} {name}: there is no {role} of this name{did_you_mean(name, names)}; known are "
        f"{', '.join(names)}, and any importable class by its full name, package.module.Class"
    )


def not_by_em(name: str) -> UsageError:
    """The error for a model that EM cannot fit."""
    return UsageError(
        f"--model {name}: EM cannot fit it, because its steps have no closed form; those that EM fits are "
        f"{', '.join(known('model', kind=BY_EM))}. To train {name}: ppl-vae train --model {name}"
    )


def role_help(role: str, default: str, kind: str = OF_ROWS) -> str:
    """What a role's option says in the help."""
    return (
        f"{', '.join(known(role, kind))}, or the full name of any importable class; its arguments are "
        f"--{role}.NAME VALUE, and --{role}.help CLASS lists them (default: "
        f"{default.rpartition('.')[2]})"
    )


# -- the classes that are named on a command line --------------------------------------------------------


def with_suited(command: str, arguments: Sequence[str]) -> list[str]:
    """The arguments of a training, with the classes that suit the model where others would be taken.

    So `--objective.beta` is an argument of the objective that suits the model. A role is left alone if a class
    of it is named, and in a refit also if nothing is said of it: then the run's own is taken.

    Example:
        >>> with_suited("train", ["--model", "HierarchicalVAE", "--guide.latent_dim", "3"])[:2]
        ['--guide', 'ppl_vae.guides.TopDown']
    """
    options = [argument.partition("=")[0] for argument in arguments]
    models = _models_of_runs(arguments) if command == "refit" else named("model", arguments)
    if "--resume" in options:
        return list(arguments)
    chosen = [*models[-1:], *named("model.colors", arguments)[-1:]]
    added = [
        word
        for role, suited in suited_to(*chosen).items()
        if not named(role, arguments)
        and (command != "refit" or any(o.startswith(f"--{role}.") for o in options))
        for word in (f"--{role}", suited)
    ]
    return [*added, *arguments]


def suited_to(*names: str) -> dict[str, str]:
    """The classes of other roles that suit a model, and the colors of a model: see `SUITED`.

    Args:
        names: The names of the classes, short or full; the last one has the last word.
    """
    found: dict[str, str] = {}
    for name in names:
        found |= SUITED.get(name.rpartition(".")[2], {})
    return found


def _models_of_runs(arguments: Sequence[str]) -> list[str]:
    """The models of the runs among the arguments, but for a folder that is to be written."""
    found = []
    for before, word in zip(["", *arguments], arguments, strict=False):
        if not word.startswith("-") and before != "--run_dir":
            found.append(_class_path(load_file(os.path.join(word, CONFIG)).get("model")))
    return [name for name in found if name]


def named(role: str, arguments: Sequence[str]) -> list[str]:
    """The classes that the arguments, and the configuration files among them, name for a role."""
    found: list[str | None] = []
    for i, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if not equals:
            value = arguments[i + 1] if i + 1 < len(arguments) else ""
        if option in (f"--{role}", f"--{role}.class_path", f"--{role}.help"):
            found.append(_class_path(value))
        elif option == "--config":
            content = load_file(value)
            found += [_class_path(content.get(key)) for key in (role, f"{role}.class_path")]
    return [name for name in found if name and not name.startswith("-")]


def _class_path(value: Any) -> str | None:
    if isinstance(value, str) and value.startswith("{"):
        try:
            value = load_yaml(value)
        except ValueError:  # which the parser will report
            return None
    if isinstance(value, Mapping):
        value = value.get("class_path")
    return value if isinstance(value, str) and not os.path.isfile(value) else None


def load_file(file: str) -> Mapping[str, Any]:
    """The content of a configuration file; nothing if it cannot be read, which the parser will report."""
    if not os.path.isfile(file):  # a pipe can be read only once
        return {}
    try:
        content = load_yaml(read_text(Path(file), MOST_YAML))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, Mapping) else {}
