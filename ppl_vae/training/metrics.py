"""The metrics of a training: their names, TensorBoard, and the progress bar's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
"""Columns of ``metrics.csv``: nats a row where nothing else is said."""


@contextmanager
def tensorboard_writer(folder: Path | None) -> Iterator[Any]:
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
    writer = SummaryWriter(str(folder / "tensorboard"))
    try:
        yield writer
    finally:
        writer.close()


def bar_postfix(row: dict[str, float]) -> dict[str, str]:
    """What the progress bar shows of the metrics of an epoch."""
    held_out = "validation_elbo" in row
    prefix = "validation_" if held_out else ""
    shown = {name: f"{row[prefix + name]:.2f}" for name in ("elbo", "rate", "distortion")}
    return shown | {"active": str(int(row["active_units"]))}
