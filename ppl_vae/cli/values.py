"""What is wrong with the values of a training's options, as far as no data are read to say so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from ppl_vae.cli.options import DATA, names
from ppl_vae.cli.setup import fill_in, missing_arguments, training_options
from ppl_vae.cli.start import options_of
from ppl_vae.data import require_data, require_data_options
from ppl_vae.runs import TYPED, build
from ppl_vae.training import require_fit_options

NOT_CHECKED = (
    "what the data hold, with that model and guide, which are built for them, and devices and memory of the "
    "machines of the runs"
)
"""What cannot be said before data are read."""


def check_values(parser: ArgumentParser, given: Namespace) -> None:
    """Raises the error that `ppl-vae train` would end with, if it does not depend on what the data hold.

    The data must be there. The objective, the optimizer, its schedule, and the parts of model and guide that
    are described by their class, such as networks, are made once; model and guide themselves need the data.

    Args:
        parser: The parser of `ppl-vae train`.
        given: The options that are given.

    Raises:
        UsageError: Options do not go together, or one is missing.
        TypeError or ValueError: A value is wrong.
        FileNotFoundError: The data are not there.
    """
    options, _ = options_of("train", parser, given)
    name = str(options["data"])
    require_data_options(name, **{n: options[n] for n in names(DATA) if n in options})
    require_data(name)
    made = training_options(options)
    numbers = ("max_epochs", "batch_size", "patience", "learning_rate", "clip_grad_norm")
    objects = ("optimizer", "lr_scheduler")
    require_fit_options(**{n: made[n] for n in (*numbers, *objects)}, tries=True)
    build(fill_in(options, "objective", {}, TYPED), role="objective")
    for role in ("model", "guide"):
        for part in _parts(options.get(role)):
            try:
                build(part)
            except (TypeError, ValueError) as error:
                if not missing_arguments(error, part["class_path"]):
                    raise


def _parts(spec: object) -> Iterator[Mapping[str, Any]]:
    """The descriptions of classes among the arguments of a class."""
    arguments = spec.get("init_args") if isinstance(spec, Mapping) else None
    for value in arguments.values() if isinstance(arguments, Mapping) else ():
        if isinstance(value, Mapping) and "." in str(value.get("class_path")):
            yield value
