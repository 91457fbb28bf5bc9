"""What does an autoencoder find that PCA does not, and what is between it and a VAE?"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from autoencoder_densities import densities
from autoencoder_pairs import (
    PCA,
    Rows,
    Sizes,
    autoencoder,
    picture_of_rows,
    reconstructed,
    squared_errors,
    trained,
)
from autoencoder_road import road
from progress import Table, require_list, start
from torch import Tensor

from ppl_vae.runtime import replacing, require_output
from ppl_vae.stats import Estimate


def sizes(
    data: str = "MNIST",
    data_dir: Path = Path("data"),
    runs: Path = Path("autoencoders"),
    codes: tuple[int, ...] = (2, 4, 8, 16, 30, 64),
    training: Sizes = Sizes(),  # noqa: B008 (frozen)
    output: Path = Path("autoencoders.png"),
    overwrite: bool = False,
) -> None:
    """Squared error of test rows by PCA and by autoencoders, for several sizes of the code.

    Args:
        data: Name of the data, as for `load_data`.
        data_dir: Folder of the data, in torchvision's layout.
        runs: Folder that keeps the trained pairs; an interrupted training continues.
        codes: Sizes of the code.
        training: Networks and training.
        output: Where to save the picture of reconstructions.
        overwrite: Whether a picture that is there is replaced.
    """
    require_output(output, overwrite=overwrite)
    require_list("--codes", codes)
    rows = Rows.of(data, data_dir, training)
    pca = PCA(rows.train)
    columns = ["code", "PCA, training rows", "PCA", "autoencoder", "autoencoder, training rows"]
    shown = Table([*columns, "PCA - autoencoder"], steps=len(codes))
    shown.head()
    sheet: dict[str, Tensor] = {"rows": rows.test[:10]}
    for size in codes:
        pair = trained(
            runs, f"code={size}", partial(autoencoder, rows, size, training), rows, training
        )
        errors = {
            name: squared_errors(x, found)
            for name, x, found in (
                ("PCA", rows.test, pca.reconstruct(rows.test, size)),
                ("autoencoder", rows.test, reconstructed(pair, rows.test)),
                ("training", rows.train, reconstructed(pair, rows.train)),
            )
        }
        cells = [f"{float(pca.variances[size:].sum()):.2f}"]
        cells += [_of(errors[name]) for name in ("PCA", "autoencoder", "training")]
        shown.row([f"{size}", *cells, _of(errors["PCA"] - errors["autoencoder"])])
        shown.step(f"code of {size}")
        sheet[f"PCA, {size}"] = pca.reconstruct(sheet["rows"], size)
        sheet[f"autoencoder, {size}"] = reconstructed(pair, sheet["rows"])
    with replacing(output, overwrite=overwrite) as file:
        picture_of_rows(sheet).savefig(file)
    layers = "-".join(map(str, training.channels or training.hidden))
    print(
        f"\nSquared error per row of {rows.name}, values from 0 to 1, {len(rows.test)} test rows: means and "
        f"standard errors over rows. Layers {layers}, {training.max_epochs} epochs of {len(rows.train)} "
        f"training rows. The picture is {output}."
    )


def _of(errors: Tensor) -> str:
    return Estimate(errors).numbers(".2f")


if __name__ == "__main__":
    tiny = {
        "data": "digits",
        "training.hidden": (16,),
        "training.max_epochs": 1,
        "training.max_rows": 60,
    }
    start(
        {"sizes": sizes, "road": road, "densities": densities},
        quick={
            "sizes": {
                **tiny,
                "codes": (2, 4),
                "runs": "autoencoders_quick",
                "output": "autoencoders_quick.png",
            },
            "road": {
                **tiny,
                "code": 2,
                "sigmas": (0.5, 0.1),
                "runs": "autoencoder_road_quick",
                "output": "autoencoder_road_quick.png",
            },
            "densities": {
                **tiny,
                "code": 2,
                "components": (2,),
                "guide_epochs": 1,
                "test_rows": 10,
                "num_samples": 10,
                "runs": "autoencoder_densities_quick",
                "output": "autoencoder_densities_quick.png",
            },
        },
    )
