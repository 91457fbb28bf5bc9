"""Where the metrics of each epoch are shown: `metrics.csv`, TensorBoard, the progress bar."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ppl_vae.pairs import ELBO_MEASURE, HELD_OUT, measure_in
from ppl_vae.runs import METRICS as FILE, TENSORBOARD, RunFolder
from ppl_vae.runtime import append_text, own_folder, write_bytes
from ppl_vae.training.latents import KL, TERM

METRICS = (
    "epoch",
    "step",
    "loss",
    "elbo",
    "rate",
    "distortion",
    "validation_elbo",
    "validation_rate",
    "validation_distortion",
    "active_units",
    "beta",
    "learning_rate",
    "seconds",
)
"""Columns of `metrics.csv`; those from `loss` to `validation_distortion` are in nats per row. After them come
the KLs of the latent dimensions, in nats: `kl_z[0]`, `kl_z[1]`, ...; and `error_of_kl`, if these are of
draws. Where the prior depends on latents that the guide computes from a dimension, what it adds to the rate is
no KL and may be negative: its column is `rate_z[0]`. `active_units` is empty for one row and where draws would
decide it, and the KL of a dimension that no row has is, too. `elbo` and `rate` have other names, or are left
out, where there is no ELBO: see `ppl_vae.pairs.Measure`."""


_GROUPED = re.compile(f"^({KL[:-1]}|{TERM[:-1]})_")
"""What stands before the names of dimensions, each of which is a curve of a group of TensorBoard."""


class MetricsLog:
    """Writes the metrics of each epoch.

    Args:
        folder: The run folder; None writes no file.
        history: The epochs so far, to which the training adds: `metrics.csv` starts with them.
        board: A TensorBoard writer, if it is asked for.
        bar: The progress bar.
    """

    def __init__(
        self, folder: RunFolder | None, history: Sequence[dict[str, float]], board: Any, bar: Any
    ) -> None:
        self._folder = folder
        self._board = board
        self._bar = bar
        self._history = history
        self._columns: list[str] = []
        self._start()
        if history:
            bar.set_postfix(_postfix(history[-1]))

    def add(self, row: dict[str, float]) -> None:
        """Writes the metrics of the epoch that has just ended."""
        self._bar.set_postfix(_postfix(row))
        if self._board is not None:
            for name, value in row.items():
                self._board.add_scalar(_GROUPED.sub(r"\1/", name), value, row["epoch"])
        if set(row) <= set(self._columns) and len(self._history) > 1:
            self._write([row])
        else:  # latents that were not there before, or the first row, which says what is measured
            self._start()

    def _start(self) -> None:
        """Writes the file from its first line on."""
        names = [name for row in self._history for name in row]
        measure = measure_in(self._history) if names else ELBO_MEASURE
        held_out = measure_in(self._history, HELD_OUT) if names else None
        known = measure.of(dict.fromkeys(METRICS, 0.0), held_out)
        self._columns = list(dict.fromkeys([*known, *names]))
        self._write(self._history, start=True)

    def _write(self, rows: Sequence[dict[str, float]], start: bool = False) -> None:
        if self._folder is None:
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, restval="", lineterminator="\n")
        if start:
            writer.writeheader()
        writer.writerows(rows)
        file = self._folder.path / FILE  # which moves when a run takes the place of another
        if start:
            write_bytes(file, text.getvalue().encode())
        else:
            append_text(file, text.getvalue())


@contextmanager
def tensorboard_writer(folder: RunFolder | None) -> Iterator[Any]:
    """A TensorBoard writer below a run folder; None without a folder."""
    if folder is None:
        yield None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "TensorBoard is not installed: pip install 'ppl_vae[tensorboard]'"
        ) from error
    writer = SummaryWriter(str(own_folder(folder.path / TENSORBOARD)))
    try:
        yield writer
    finally:
        writer.close()


def _postfix(row: dict[str, float]) -> dict[str, str]:
    """What the progress bar shows of the metrics of an epoch."""
    prefix = HELD_OUT if "validation_distortion" in row else ""
    there = [name for name in measure_in([row], prefix).columns if prefix + name in row]
    shown = {name: f"{row[prefix + name]:.2f}" for name in there}
    active = row.get("active_units")
    known = {} if active is None else {"active": str(int(active))}
    return {"epoch": str(int(row["epoch"]))} | shown | known
