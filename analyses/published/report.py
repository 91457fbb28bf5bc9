"""A published number beside ours: theirs, ours by their estimator, and ours by one that can be trusted."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ppl_vae
from ppl_vae.runs import describe_rows
from ppl_vae.runtime import write_bytes
from ppl_vae.stats import Estimate

FILE = "published.json"
"""In the run folder: what was found, with the values of each row."""


@dataclass(frozen=True)
class Theirs:
    """A number of a paper.

    Attributes:
        paper: Title and address.
        row: Which row of which table.
        log_likelihood: log p(x) of the test rows, in nats; None if only claims are compared.
        num_samples: K of their importance sampling from the guide.
        active_units: Their number of active units; None if they give none.
        claims: What the paper says that is compared as a direction, one sentence each.
        differs: What we do otherwise, one sentence each.
    """

    paper: str
    row: str
    log_likelihood: float | None = None
    num_samples: int = 5000
    active_units: int | None = None
    claims: list[str] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Ours:
    """What a trained pair reaches on the test rows.

    Attributes:
        epochs: How long it was trained.
        rows: What `describe_rows` says of the test rows: only equal ones are compared row by row.
        elbo: Of each row, as the next ones.
        their_way: log p(x) by importance sampling from the guide with their K.
        trusted: log p(x) by `evaluate(method="auto")`.
        unreliable: Share of the rows whose log p(x) is not to be trusted, by their way and by ours.
        trusted_samples: K of our way.
        active_units: Latent dimensions that vary with x.
    """

    epochs: int
    rows: dict[str, Any]
    elbo: list[float]
    their_way: list[float]
    trusted: list[float]
    unreliable: tuple[float, float]
    trusted_samples: int
    active_units: int

    @property
    def estimator_gap(self) -> Estimate:
        """What their estimator leaves out: the trusted log p(x) minus that of their way, row by row."""
        return Estimate(torch.tensor(self.trusted) - torch.tensor(self.their_way))


def judged(
    run_dir: Path,
    theirs: Theirs,
    model: Callable[..., Any],
    guide: Callable[..., Any],
    test: Tensor,
    *,
    epochs: int,
    trusted_samples: int = 1000,
    seed: int = 0,
) -> Ours:
    """What a pair reaches on test rows, by their way and by ours; taken from the run folder if it is there."""
    rows = describe_rows(test, "test")
    if (before := _read(run_dir)) is not None:
        same = (before.epochs, before.rows, before.trusted_samples) == (
            epochs,
            rows,
            trusted_samples,
        )
        if same:
            return before
    print(f"evaluating {len(test)} test rows, their way", file=sys.stderr, flush=True)
    their_way = ppl_vae.evaluate(
        model, guide, test, num_samples=theirs.num_samples, method="guide", seed=seed
    )
    print("evaluating them by proposals of each row's own", file=sys.stderr, flush=True)
    trusted = ppl_vae.evaluate(model, guide, test, num_samples=trusted_samples, seed=seed)
    seen = ppl_vae.diagnose(model, guide, test, seed=seed)
    found = Ours(
        epochs,
        rows,
        their_way.elbo.values.tolist(),
        their_way.log_likelihood.values.tolist(),
        trusted.log_likelihood.values.tolist(),
        (
            float(their_way.unreliable.double().mean()),
            float(trusted.unreliable.double().mean()),
        ),
        trusted_samples,
        seen.active_units,
    )
    content = {"theirs": asdict(theirs), "ours": asdict(found)}
    write_bytes(run_dir / FILE, json.dumps(content).encode())
    return found


def _read(run_dir: Path) -> Ours | None:
    file = run_dir / FILE
    if not file.exists():
        return None
    ours = json.loads(file.read_text())["ours"]
    return Ours(**(ours | {"unreliable": tuple(ours["unreliable"])}))


def read(run_dir: Path) -> tuple[Theirs, Ours]:
    """What `judged` has written into a run folder.

    Raises:
        FileNotFoundError: It has written nothing there.
    """
    ours = _read(run_dir)
    if ours is None:
        raise FileNotFoundError(
            f"{run_dir} holds no {FILE}: run the script of the table's row with this folder first"
        )
    return Theirs(**json.loads((run_dir / FILE).read_text())["theirs"]), ours


COLUMNS = (
    "row",
    "epochs",
    "ELBO",
    "log p(x), their way",
    "log p(x), trusted",
    "the estimator's part",
    "log p(x), theirs",
    "active units",
    "active units, theirs",
    "unreliable, their way",
    "unreliable",
)


def cells(theirs: Theirs, ours: Ours) -> list[str]:
    """A line of the table."""

    def nats(values: list[float]) -> str:
        return Estimate(torch.tensor(values)).numbers(".2f")

    return [
        theirs.row,
        f"{ours.epochs}",
        nats(ours.elbo),
        f"{nats(ours.their_way)} (K = {theirs.num_samples})",
        f"{nats(ours.trusted)} (K = {ours.trusted_samples})",
        ours.estimator_gap.numbers(".3f"),
        "" if theirs.log_likelihood is None else f"{theirs.log_likelihood:.2f}",
        f"{ours.active_units}",
        "" if theirs.active_units is None else f"{theirs.active_units}",
        f"{ours.unreliable[0]:.1%}",
        f"{ours.unreliable[1]:.1%}",
    ]


def show(setting: str, run_dir: Path, theirs: Theirs, *pair_and_test: Any, **options: Any) -> None:
    """Prints ours, theirs, the setting, and what differs; the other arguments are those of `judged`."""
    ours = judged(run_dir, theirs, *pair_and_test, **options)
    for line in (COLUMNS, ["---"] * len(COLUMNS), cells(theirs, ours)):
        print("|", " | ".join(line), "|")
    print(f"\n{len(ours.trusted)} test rows; nats per row ± standard error over rows.")
    print(
        textwrap.fill(
            f"The estimator's part: log p(x) by proposals of each row's own minus that by {theirs.num_samples} "
            "samples from the guide, row by row.",
            100,
        )
    )
    print(f"Paper: {theirs.paper}\nSetting: {setting}")
    for number, text in enumerate(theirs.differs, 1):
        print(f"Differs {number}: {text}")
