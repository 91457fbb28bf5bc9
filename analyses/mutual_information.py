"""How much does z tell of x? Bounds on I(x; z) from n rows, and the rate, beside the exact value."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from matplotlib.figure import Figure
from progress import Table, require_list, start

from ppl_vae import diagnose, sample
from ppl_vae.diagnosis import Diagnosis
from ppl_vae.guides import Exact
from ppl_vae.models import ProbabilisticPCA
from ppl_vae.runtime import replacing, require_output

SIZE = 20
"""Numbers of a row."""


def model_of(latent_dim: int, nats: float, seed: int) -> ProbabilisticPCA:
    """Probabilistic PCA with the noise 1 and the mutual information I(x; z) = sum_i log(1 + w_i^2) / 2."""
    model = ProbabilisticPCA((SIZE,), latent_dim, sigma=1.0, learn_sigma=False)
    generator = torch.Generator().manual_seed(seed)
    directions, _ = torch.linalg.qr(torch.randn(SIZE, latent_dim, generator=generator))
    with torch.no_grad():
        model.weight.copy_(math.sqrt(math.expm1(2 * nats / latent_dim)) * directions)
    return model


def estimates(
    model: ProbabilisticPCA, rows: tuple[int, ...], seed: int, table: Table, exact: float
) -> dict[int, Diagnosis]:
    """What `diagnose` finds for so many rows of the model, with its exact posterior as the guide."""
    found = {}
    for n in rows:
        x = sample(model, n, seed=seed, progress=False)
        of = diagnose(model, Exact(model), x, seed=seed, progress=False)
        found[n] = of
        low, high = of.information_bounds
        three = (of.mutual_information, of.leave_one_out, of.rate)
        columns = [f"{each.mean:.2f} ± {each.standard_error:.2f}" for each in three]
        cells = [f"{exact:g}", f"{n:,}", f"{math.log(n):.2f}", *columns, f"{low:.2f} to {high:.2f}"]
        table.row(cells)
        table.step(f"{exact:g} nats, {n:,} rows")
    return found


def main(
    latent_dims: tuple[int, ...] = (2, 10),
    nats: tuple[float, ...] = (3.0, 9.0),
    rows: tuple[int, ...] = (50, 150, 500, 1_500, 5_000, 15_000, 50_000),
    output: Path = Path("mutual_information.png"),
    overwrite: bool = False,
    seed: int = 0,
) -> None:
    """Compares estimates of I(x; z) with its exact value, for more and more rows.

    Args:
        latent_dims: Latent dimensions of the models.
        nats: Their mutual information, one for each.
        rows: Numbers of rows.
        output: Where to save the picture.
        overwrite: Whether a picture that is there is replaced.
        seed: Seed of all random numbers.
    """
    require_output(output, overwrite=overwrite)
    require_list("--rows", rows)
    columns = ["exact", "rows", "log n", "aggregate posterior", "leave one out", "rate", "interval"]
    table = Table(columns, steps=len(rows) * len(nats))
    table.head()
    found = {
        exact: estimates(model_of(latent_dim, exact, seed), rows, seed, table, exact)
        for latent_dim, exact in zip(latent_dims, nats, strict=True)
    }
    with replacing(output, overwrite=overwrite) as file:
        picture(found).savefig(file)
    print(f"\nNats; errors are standard errors over at most 1,000 rows. The picture is {output}.")


def picture(found: dict[float, dict[int, Diagnosis]]) -> Figure:
    """A panel for each exact value."""
    figure = Figure(figsize=(9, 4.2), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, (exact, by_rows) in zip(panels, found.items(), strict=True):
        rows = list(by_rows)
        axes.axhline(exact, color="#8C8C8C", lw=3, label="exact")
        axes.plot(rows, [math.log(n) for n in rows], color="#8C8C8C", ls=":", lw=2, label="log n")
        curves = {
            "leave one out": ("#E69F00", [of.leave_one_out for of in by_rows.values()]),
            "rate": ("#56B4E9", [of.rate for of in by_rows.values()]),
            "aggregate posterior": ("#D55E00", [of.mutual_information for of in by_rows.values()]),
        }
        for name, (color, values) in curves.items():
            errors = [2 * value.standard_error for value in values]
            means = [value.mean for value in values]
            axes.errorbar(rows, means, errors, color=color, marker="o", ms=5, lw=1.5, label=name)
        axes.set_xscale("log")
        axes.set_ylim(0, 1.7 * exact)
        axes.set_title(f"I(x; z) = {exact:g} nats", fontsize=17)
        axes.set_xlabel("rows n", fontsize=17)
        axes.tick_params(labelsize=15)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("nats", fontsize=17)
    panels[0].legend(fontsize=13, frameon=False, loc="lower right")
    return figure


if __name__ == "__main__":
    start(
        main,
        quick={
            **{"latent_dims": (2,), "nats": (2.0,), "rows": (50, 100)},
            "output": "mutual_information_quick.png",
        },
    )
