"""What each latent dimension carries, after each epoch, and which of them have died."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ppl_vae.pairs import (
    COLLAPSED,
    Batch,
    Pair,
    RowDensities,
    kl_of_dimensions,
    latents_of_numbers,
    mean_field_violations,
    means_of_sites,
    names_of_dimensions,
    present_numbers,
    prior_moments,
)
from ppl_vae.stats import active_units

_logger = logging.getLogger(__name__)

KL = "kl_"
"""Before the name of a dimension: its KL in the metrics of an epoch, `kl_z[0]`."""

MOST_DIMENSIONS = 512
"""Most dimensions whose KL is in the metrics."""

DEAD_EPOCHS = 5
"""Epochs in a row for which a dimension carries nothing until it is called dead."""


class LatentUse:
    """Active units and the KL of each dimension over some rows.

    Args:
        pair: The pair.
        analytic: Whether analytic KLs are right, by the kind of the rows; it is filled in.
    """

    def __init__(self, pair: Pair, analytic: dict[object, bool]) -> None:
        self._pair = pair
        self._analytic = analytic
        self._means: dict[tuple[str, int], list[Tensor]] = {}
        self._kl: dict[
            str, list[Tensor]
        ] = {}  # by site: the sums over rows, and how many have the number
        self._names: dict[str, list[str]] = {}

    def update(self, rows: RowDensities, batch: Batch) -> None:
        """Adds rows."""
        means, layout = means_of_sites(rows, rows.layout), rows.layout
        for name in latents_of_numbers(rows, layout):
            columns = means[name]
            prior = prior_moments(rows, layout, name)
            there = present_numbers(rows, layout, name).reshape(len(columns), -1)
            scaled = _in_units_of_the_prior(columns, prior).masked_fill(~there, math.nan)
            self._means.setdefault((name, columns.shape[1]), []).append(scaled.cpu())
            if prior is None or layout.points:
                continue
            kl = kl_of_dimensions(rows, name, prior, self._is_analytic(rows, batch))
            names = names_of_dimensions(name, kl.shape[1:])
            if self._names.setdefault(name, names) != names:
                continue  # of another size than in the rows before
            kl = kl.reshape(len(columns), -1).masked_fill(~there, 0.0)
            self._kl.setdefault(name, []).append(torch.stack([kl.sum(0), there.double().sum(0)]))

    def _is_analytic(self, rows: RowDensities, batch: Batch) -> bool:
        kind = rows.layout.signature
        if kind not in self._analytic:
            self._analytic[kind] = not mean_field_violations(self._pair, batch)
        return self._analytic[kind]

    @property
    def metrics(self) -> dict[str, float]:
        """`active_units`, and the mean KL of each dimension over the rows that have it, nats.

        The KLs are left out if there are more than `MOST_DIMENSIONS`, and those of a site whose prior states
        no moments.
        """
        active = sum(_num_active(torch.cat(columns)) for columns in self._means.values())
        found: dict[str, float] = {"active_units": active}
        if sum(map(len, self._names.values())) <= MOST_DIMENSIONS:
            for site, parts in self._kl.items():
                kl, count = torch.stack(parts).sum(0).cpu()
                for name, value in zip(self._names[site], (kl / count).tolist(), strict=True):
                    found[KL + name] = value
        return found


def kl_of_epoch(metrics: Mapping[str, float]) -> dict[str, float]:
    """The KL of each dimension in the metrics of an epoch, by the dimension's name.

    Example:
        >>> kl_of_epoch({"epoch": 3, "rate": 2.0, "kl_z[0]": 1.9, "kl_z[1]": 0.1})
        {'z[0]': 1.9, 'z[1]': 0.1}
    """
    return {name[len(KL) :]: value for name, value in metrics.items() if name.startswith(KL)}


def dead_dimensions(history: Sequence[Mapping[str, float]]) -> tuple[str, ...]:
    """The dimensions that have carried less than 0.01 nats in each of the last 5 epochs.

    Example:
        >>> dead_dimensions([{"epoch": i, "kl_z[0]": 1.0, "kl_z[1]": 0.001} for i in range(5)])
        ('z[1]',)
    """
    last = [kl_of_epoch(metrics) for metrics in history[-DEAD_EPOCHS:]]
    if len(last) < DEAD_EPOCHS:
        return ()
    return tuple(
        name for name in last[-1] if all(kl.get(name, math.inf) < COLLAPSED for kl in last)
    )


class Deaths:
    """Says in the log that dimensions have died, each of them once, and at most every 5 epochs.

    Args:
        history: The epochs before, when a training is resumed: what died in them has been said.
        speaks: Whether this process says it.
    """

    def __init__(self, history: Sequence[Mapping[str, float]], speaks: bool = True) -> None:
        self._named: dict[str, None] = {}
        self._last = -DEAD_EPOCHS
        self._speaks = False
        for end in range(1, len(history) + 1):
            self.look(history[max(0, end - DEAD_EPOCHS) : end], end)
        self._speaks = speaks

    def look(self, history: Sequence[Mapping[str, float]], epoch: int) -> None:
        """Looks at the epochs so far, of which the last has just ended."""
        new = [name for name in dead_dimensions(history) if name not in self._named]
        if not new or epoch - self._last < DEAD_EPOCHS:
            return
        self._last = epoch
        self._named |= dict.fromkeys(new)
        if self._speaks:
            number = len(kl_of_epoch(history[-1]))
            _logger.warning("%s", _said(new, number, epoch))


def _said(new: Sequence[str], number: int, epoch: int) -> str:
    few = ", ".join(itertools.islice(new, 3))
    more = f" and {len(new) - 3} more" if len(new) > 3 else ""
    have, each = ("has", "") if len(new) == 1 else ("have", " each")
    whole = f"all {number} latent dimensions" if 1 < len(new) == number else f"{few}{more}"
    return (
        f"epoch {epoch}: {whole} {have} carried less than {COLLAPSED} nats{each} for {DEAD_EPOCHS} epochs; "
        "diagnose() and `ppl-vae diagnose` say why"
    )


def _in_units_of_the_prior(means: Tensor, prior: tuple[Tensor, Tensor] | None) -> Tensor:
    """Posterior means `(n, d)` in the prior's standard deviations."""
    if prior is None:
        return means
    scale = prior[1].reshape(len(means), -1).mean(0).sqrt()
    return means / torch.where(scale.isfinite() & (scale > 0), scale, 1.0)


def _num_active(means: Tensor) -> int:
    """The number of active units, each over the rows that have it."""
    columns = [column[~column.isnan()] for column in means.T]
    return sum(int(active_units(column)[1]) for column in columns if len(column) > 1)
