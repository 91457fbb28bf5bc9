"""The subcommand `probe`: classes that are learned from a few labels, by what a run's encoder makes of rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from torch import Tensor

from ppl_vae.checks import device_for
from ppl_vae.cli.common import (
    keep_and_show,
    keep_result,
    require_writable,
    warn_of_other_rows,
)
from ppl_vae.cli.mistakes import UsageError
from ppl_vae.cli.own_modules import trust_of
from ppl_vae.cli.setup import checked, load_rows
from ppl_vae.data import Data, rows_alone
from ppl_vae.pairs import Batches, Pair
from ppl_vae.runs import PROBE, Run, describe_rows, load_run
from ppl_vae.runtime import (
    HIDDEN,
    preserve_random_state,
    require_count,
    require_file,
    resolve_device,
    seed_everything,
)
from ppl_vae.stats import CrossedEstimate, Result
from ppl_vae.tasks import FineTuned, Probe, fine_tune, probe as probe_pair


@dataclass(frozen=True)
class ProbedRun(Result):
    """What `ppl-vae probe` finds.

    Attributes:
        probe: Logistic regression on what the encoder makes of rows.
        tuned: The encoder and a linear layer, trained together; None if that was not asked for.
    """

    probe: Probe
    tuned: FineTuned | None

    @property
    def num_rows(self) -> int:
        """The number of test rows."""
        return self.probe.num_rows

    @property
    def difference(self) -> CrossedEstimate | None:
        """Accuracy of the second minus that of the first, paired by test row and draw."""
        return None if self.tuned is None else self.tuned.minus(self.probe)

    def lines(self) -> list[tuple[str, str]]:
        """The printed result: name and value of each quantity."""
        found = self.probe.lines()
        if self.tuned is None or self.difference is None:
            return found
        theirs = [(f"{name}, fine-tuned", value) for name, value in self.tuned.lines()[:-4]]
        return [
            *found,
            *theirs,
            ("fine-tuned minus probe", f"{self.difference.numbers('+.2f')} %"),
            ("classifier, fine-tuned", self.tuned.method),
        ]

    def doubts(self) -> Iterator[str]:
        """Reasons not to trust the numbers, one sentence each."""
        for found in (self.probe, self.tuned):
            yield from () if found is None else found.warnings

    def rows(self) -> dict[str, Tensor]:
        """Values of each test row by name, `(n,)`."""
        found = self.probe.rows()
        if self.tuned is not None:
            found["accuracy_fine_tuned"] = self.tuned.rows()["accuracy"]
        return found

    def summary_numbers(self) -> dict[str, Any]:
        """The numbers of both, and their difference."""
        tuned, difference = self.tuned, self.difference
        return {
            "num_rows": self.num_rows,
            "probe": self.probe.summary_numbers(),
            "fine_tuned": None if tuned is None else tuned.summary_numbers(),
            "difference": None if difference is None else difference.to_dict(),
        }


def probe(parser: ArgumentParser, given: Namespace) -> int:
    """Learns classes from a few labels by a run's encoder, and says how many test rows get their label."""
    options = parser.get_defaults()
    options.update(given)
    for name, least in (("labels", 2), ("draws", 1), ("num_steps", 1)):
        _require_count(name, options[name], least)
    if options.max_rows is not None:
        _require_count("max_rows", options.max_rows, 1)
    run = load_run(options.run, trust=trust_of(given, options.run), results=False)
    require_writable(run.path)
    file = run.path / PROBE
    for each in (file, file.with_suffix(".csv")) if options.overwrite else ():
        if not each.is_symlink():
            require_file(each)
    data = _data_of(run, options)
    _require_labels(data, options)
    train, test = _labelled(data, options)
    pair = Pair.of(run.model, run.guide)
    pair.to(resolve_device(device_for(pair, Batches(test[0], pair), options.device)))
    how: dict[str, Any] = {name: options[name] for name in ("labels", "draws", "seed")}
    how["progress"] = False if options.quiet else None
    found = ProbedRun(
        probe_pair(run.model, run.guide, train, test, **how),
        fine_tune(run.model, run.guide, train, test, num_steps=options.num_steps, **how)
        if options.fine_tune
        else None,
        cautions=_of_training(run, data),
    )
    rows = describe_rows(test[0], data.name, "test")
    keep_and_show(found, lambda: keep_result(run, PROBE, options.overwrite, probe=found, rows=rows))
    return 0


def _require_count(name: str, given: int, least: int) -> None:
    try:
        require_count(f"--{name}", given, least)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _data_of(run: Run, options: Namespace) -> Data[Any]:
    """The run's data, or others with rows of the same shape.

    Raises:
        UsageError: Rows have another shape.
    """
    config = checked(run.path, run.config)
    if options.data is None:
        data = load_rows(config, options.data_dir)
        warn_of_other_rows(run.path, data)
        return data
    data = load_rows({**config, "data": options.data, "labels": False}, options.data_dir)
    shape = getattr(run.model, "data_shape", None)
    if shape is not None and tuple(shape) != data.shape:
        raise UsageError(
            f"--data {options.data}: its rows have the shape {data.shape}, but the run was trained on rows of "
            f"shape {tuple(shape)}"
        )
    return data


def _require_labels(data: Data[Any], options: Namespace) -> None:
    """Refuses data without labels, or with fewer than are asked for.

    Raises:
        UsageError: They are such.
    """
    labels = data.train_labels
    if labels is None or data.test_labels is None:
        raise UsageError(
            f"{data.name} has no labels to learn: give others of the same shape that have some, as in --data "
            "folder:PATH (a folder for each class) or --data rows.npz (x and y)"
        )
    if labels.dim() > 1 or labels.is_floating_point():
        raise UsageError(
            f"the labels of {data.name} are attributes, of shape {tuple(labels.shape)}, and no classes: give "
            "data with a whole number from 0 for each row"
        )
    known = labels[labels != HIDDEN]
    if options.labels > len(known):
        raise UsageError(
            f"--labels {options.labels}: {data.name} has only {len(known)} training rows with a label"
        )
    classes = len(known.unique())
    if options.labels < classes:
        raise UsageError(
            f"--labels {options.labels}: {data.name} has {classes} classes, and each needs a label: give "
            f"--labels {classes} or more"
        )


def _labelled(
    data: Data[Any], options: Namespace
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training rows and test rows with their labels, as the run's programs read rows."""
    x, held = rows_alone(data.train), rows_alone(data.test)[: options.max_rows]
    if data.transform is not None:
        with preserve_random_state():
            seed_everything(options.seed)
            x = data.transform(x)
    assert data.train_labels is not None
    assert data.test_labels is not None
    return (x, data.train_labels), (held, data.test_labels[: options.max_rows])


def _of_training(run: Run, data: Data[Any]) -> tuple[str, ...]:
    """A caution for a pair that has seen labels before."""
    if not run.config.get("labels"):
        return ()
    return (
        f"the run was trained with labels (labels: {run.config['labels']}), so that its encoder has seen more "
        "of them than are learned from here",
    )
