"""The learned manifold of faces: a plane of them, directions of smile and pose, paths between faces."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from autoencoder_pairs import (
    Pair,
    Rows,
    Sizes,
    picture_of_rows,
    reconstructed,
    spread_over,
    squared_errors,
    trained,
)
from progress import Table, start
from torch import Tensor

from ppl_vae import evaluate
from ppl_vae.guides import MeanField
from ppl_vae.likelihoods import OptimalGaussian
from ppl_vae.models import VAE
from ppl_vae.plots import manifold as plane_of
from ppl_vae.runtime import replacing, require_output
from ppl_vae.stats import Estimate
from ppl_vae.tasks import encode, interpolate, sample

STRETCH, EVERY = 65, 5
"""Frames of a stretch of the video, of which one in so many is for the test."""

COLUMNS = ["rows", "ELBO", "log p(x)", "unreliable", "rate", "squared error"]
"""What is measured of a VAE; unreliable is the share of rows whose log p(x) is not to be trusted."""

FACES = Sizes(hidden=(200,), sigmoid=False, max_epochs=400, learning_rate=2e-3, batch_size=100)
"""The network of Kingma and Welling (arXiv:1312.6114), and a training."""


def manifold(
    data: str = "faces.npy",
    data_dir: Path = Path("data"),
    runs: Path = Path("faces"),
    training: Sizes = FACES,
    test_rows: int = 1000,
    size: int = 15,
    output: Path = Path("faces_manifold.png"),
    overwrite: bool = False,
) -> None:
    """Trains a VAE with two latents, and draws the means of faces over the plane.

    Args:
        data: Pictures in the order of a video, `(n, 1, height, width)` of bytes, in an `.npy` file; or a name
            as for `load_data`, which has a split.
        data_dir: Folder of data by name, in torchvision's layout.
        runs: Folder that keeps the trained pairs; an interrupted training continues.
        training: Networks and trainings.
        test_rows: Test rows that are measured, at equal distances.
        size: Faces per side of the plane, at equal steps of the mass of N(0, I).
        output: Where to save the picture.
        overwrite: Whether a picture that is there is replaced.
    """
    require_output(output, overwrite=overwrite)
    rows = frames(data, training, data_dir)
    shown = Table(COLUMNS, steps=3)
    shown.head()
    model, guide = trained(runs, "code=2", partial(vae, rows, 2, training), rows, training)
    shown.step("training")
    shown.row(_measured(model, guide, rows, data, test_rows))
    shown.step("evaluation")

    def means(z: Tensor) -> Tensor:
        drawn: Tensor = sample(model, len(z), given={"z": z}, means=True)
        return drawn.clamp(0, 1)

    with replacing(output, overwrite=overwrite) as file:
        plane_of(means, size=size).savefig(file)
    shown.step("picture")
    print(f"\n{_told(data, rows, training)} The picture is {output}.")


def moves(
    data: str = "faces.npy",
    data_dir: Path = Path("data"),
    runs: Path = Path("faces"),
    latent_dim: int = 12,
    training: Sizes = FACES,
    test_rows: int = 1000,
    mouth: tuple[int, int, int, int] = (17, 26, 4, 16),
    face: int = 0,
    reach: float = 3.0,
    output: Path = Path("faces_moves.png"),
    overwrite: bool = False,
) -> None:
    """Finds the directions of the latents in which the mouth moves, and in which the head turns or nods.

    With J the slopes of E[x | z] at the codes of test faces, a step along w changes a face by J w. *Smile* is
    the w for which most of |J w|^2 is within the mouth; *turn* and *nod* are those for which most of it is what
    a small shift of the face, to the side or upwards, would change. With w in standard deviations of the codes,
    each is the largest generalized eigenvector of two matrices, w^T A w / w^T (B + b I) w with B = E J^T J and
    b its mean eigenvalue, so that directions that change little do not count: nothing is labeled.

    Args:
        data: Pictures in the order of a video, `(n, 1, height, width)` of bytes, in an `.npy` file; or a name
            as for `load_data`, which has a split.
        data_dir: Folder of data by name, in torchvision's layout.
        runs: Folder that keeps the trained pairs; an interrupted training continues.
        latent_dim: Number of latents.
        training: Networks and trainings.
        test_rows: Test rows that are measured, at equal distances.
        mouth: Where the mouth is: first and last row, first and last column; the last ones do not count.
        face: The number of the face that moves, of at most 64 that are spread over the test frames.
        reach: How far the directions are followed, in standard deviations of the codes.
        output: Where to save the picture.
        overwrite: Whether a picture that is there is replaced.
    """
    require_output(output, overwrite=overwrite)
    rows = frames(data, training, data_dir)
    made = partial(vae, rows, latent_dim, training)
    shown = Table(COLUMNS, steps=4)
    shown.head()
    model, guide = trained(runs, f"code={latent_dim}", made, rows, training)
    shown.step("training")
    shown.row(_measured(model, guide, rows, data, test_rows))
    shown.step("evaluation")
    codes = encode(model, guide, rows.train, progress=False)["z"]
    at = encode(model, guide, rows.test[:: max(1, len(rows.test) // 64)], progress=False)["z"]
    center = codes.mean(0)
    # A step of 1 is a standard deviation of the codes, in any direction.
    root = torch.linalg.cholesky(torch.cov(codes.T))
    slopes = jacobians(model, at) @ root
    shares = directions(slopes, means_of(model, at), mouth)
    top, bottom, left, right = mouth
    of_mouth = (bottom - top) * (right - left) / rows.test[0].numel()
    told = {
        "smile": f"is in the mouth, {of_mouth:.0%} of the picture",
        "turn": "is what a shift to the side would change",
        "nod": "is what a shift upwards would change",
    }
    print()
    second = Table(["direction", "share of the change", "that"], steps=1)
    second.head()
    sheet: dict[str, Tensor] = {}
    steps = torch.linspace(-reach, reach, 9)
    own = torch.linalg.solve_triangular(root, (at[face] - center)[:, None], upper=False)[:, 0]
    for name, (share, w) in shares.items():
        # Along w from the mean of all codes, elsewhere as the face is.
        path = own - (own @ w) * w + steps[:, None] * w
        sheet[name] = means_of(model, center + path @ root.T)
        second.row([name, f"{share:.0%}", told[name]])
    shown.step("directions")
    ends = [0, len(rows.test) // 3, 2 * len(rows.test) // 3, len(rows.test) - 1]
    for i, (a, b) in enumerate(pairwise(ends)):
        one, other = rows.test[a : a + 1], rows.test[b : b + 1]
        between = interpolate(model, guide, one, other, steps=7, seed=0)[0].clamp(0, 1)
        sheet[f"path {i + 1}"] = torch.cat([one, between, other])
    with replacing(output, overwrite=overwrite) as file:
        picture_of_rows(sheet).savefig(file)
    shown.step("picture")
    print(
        f"\n{_told(data, rows, training)} {latent_dim} latents. The picture is {output}: paths begin and end "
        "at test faces."
    )


@dataclass(frozen=True)
class _Shifts:
    """What small shifts of pictures change, to the side and upwards, `(n, height * width)` each."""

    side: Tensor
    upwards: Tensor

    @classmethod
    def of(cls, x: Tensor) -> _Shifts:
        along, up = (torch.gradient(x, dim=dim)[0].flatten(1) for dim in (-1, -2))
        return cls(along, up)


def directions(
    slopes: Tensor, x: Tensor, mouth: tuple[int, int, int, int]
) -> dict[str, tuple[float, Tensor]]:
    """For each direction the share of the change that is of its kind, and the unit vector `(latent_dim,)`.

    Args:
        slopes: J of each face, `(n, height * width, latent_dim)`.
        x: Their means, `(n, 1, height, width)`.
        mouth: See `moves`.
    """
    top, bottom, left, right = mouth
    inside = torch.zeros(x.shape[-2:])
    inside[top:bottom, left:right] = 1
    in_mouth = slopes * inside.flatten()[:, None]
    shifts = _Shifts.of(x)
    all_of_it = torch.einsum("nid,nie->de", slopes, slopes)
    kinds = {"smile": torch.einsum("nid,nie->de", in_mouth, in_mouth)}
    for name, shift in (("turn", shifts.side), ("nod", shifts.upwards)):
        unit = shift / shift.norm(dim=1, keepdim=True)
        along = torch.einsum("nid,ni->nd", slopes, unit)
        kinds[name] = along.T @ along
    return {name: _largest(kind, all_of_it) for name, kind in kinds.items()}


def _largest(a: Tensor, b: Tensor) -> tuple[float, Tensor]:
    """The w of norm 1 with the largest w^T A w / w^T (B + b I) w, and its share w^T A w / w^T B w."""
    a, b = a.double(), b.double()
    held = b + b.diagonal().mean() * torch.eye(len(b)).double()
    values, vectors = torch.linalg.eigh(held)
    root = vectors / values.sqrt()
    w = root @ torch.linalg.eigh(root.T @ a @ root).eigenvectors[:, -1]
    return float(w @ a @ w / (w @ b @ w)), (w / w.norm()).float()


def jacobians(model: Any, z: Tensor, step: float = 0.05) -> Tensor:
    """The slopes of E[x | z] at each code, `(n, height * width, latent_dim)`, by central differences."""
    found = []
    for unit in torch.eye(z.shape[1]):
        both = [means_of(model, z + side * step * unit).flatten(1) for side in (1, -1)]
        found.append((both[0] - both[1]) / (2 * step))
    return torch.stack(found, -1)


def means_of(model: Any, z: Tensor) -> Tensor:
    """E[x | z] for codes `(n, latent_dim)`."""
    drawn: Tensor = sample(model, len(z), given={"z": z}, means=True)
    return drawn


def vae(rows: Rows, latent_dim: int, sizes: Sizes) -> Pair:
    """A VAE whose noise is the best one."""
    network = sizes.network
    return (
        VAE(rows.shape, latent_dim, network, OptimalGaussian()),
        MeanField(rows.shape, latent_dim, network),
    )


def is_video(data: str) -> bool:
    """Whether data are the frames of a video, and no name as for `load_data`."""
    return data.endswith(".npy")


def frames(data: str, sizes: Sizes, data_dir: Path = Path("data")) -> Rows:
    """The frames of a video, split by stretches: neighbors are nearly alike, and would be on both sides.

    Data by name have a split of their own.

    Raises:
        ValueError: The file holds something else.
    """
    if not is_video(data):
        return Rows.of(data, data_dir, sizes)
    pictures = np.load(data)
    if pictures.ndim != 4 or pictures.dtype != np.uint8:
        raise ValueError(
            f"data: {data} must hold pictures of bytes, (n, 1, height, width), got {pictures.dtype} of "
            f"shape {pictures.shape}"
        )
    x = torch.from_numpy(pictures)[: sizes.max_rows].float() / 255
    stretch = torch.arange(len(x)) // STRETCH
    for_test = stretch % EVERY == EVERY - 1
    if not bool(for_test.any()):  # few rows, for a quick trial
        for_test = torch.arange(len(x)) % EVERY == EVERY - 1
    return Rows(Path(data).stem, x[~for_test], x[for_test])


def over_stretches(values: Tensor, data: str, at: Tensor | None = None) -> Estimate:
    """The mean over test rows; of a video, with the standard error of the mean over its stretches.

    Neighbors are nearly alike, so the frames of a stretch count as one observation, weighted by their number.

    Args:
        values: One for each of some test rows of `frames(data, ...)`, `(n,)`.
        data: See `frames`.
        at: Which test rows they are; None: the first ones, in their order.

    Returns:
        An estimate whose rows are stretches; of data by name, the rows. A single stretch has no error.
    """
    if not is_video(data):
        return Estimate(values)
    stretch = (torch.arange(len(values)) if at is None else at) // STRETCH
    parts = [values.double()[stretch == number] for number in stretch.unique()]
    sizes = torch.tensor([float(len(part)) for part in parts])
    return Estimate(torch.stack([part.mean() for part in parts]), weights=sizes)


def _measured(model: Any, guide: Any, rows: Rows, data: str, test_rows: int) -> list[str]:
    at = spread_over(len(rows.test), test_rows)
    x = rows.test[at]
    found = evaluate(model, guide, x, num_samples=100, seed=0, progress=False)
    errors = squared_errors(x, reconstructed((model, guide), x))
    numbers = [found.elbo.values, found.log_likelihood.values, found.rate.values, errors]
    cells = [over_stretches(each, data, at).numbers(".2f") for each in numbers]
    cells.insert(2, f"{found.unreliable.double().mean():.1%}")
    return [f"{len(x)}", *cells]


def _told(data: str, rows: Rows, training: Sizes) -> str:
    what, which = "rows", "test rows of their own"
    if is_video(data):
        stretches = math.ceil(len(rows.test) / STRETCH)
        what, which = "frames", "of other stretches of the video for the test"
        which += (
            f". Standard errors are those over {stretches} stretches, whose frames are nearly alike"
        )
    return (
        f"{len(rows.train)} {what} of {rows.name} for training, {training.max_epochs} epochs; {len(rows.test)} "
        f"{which}."
    )


if __name__ == "__main__":
    tiny = {
        "data": "digits",
        "training.hidden": (16,),
        "training.max_epochs": 2,
        "training.max_rows": 60,
    }
    start(
        {"manifold": manifold, "moves": moves},
        quick={
            "manifold": {
                **tiny,
                "size": 3,
                "runs": "faces_quick",
                "output": "faces_manifold_quick.png",
            },
            "moves": {
                **tiny,
                "latent_dim": 3,
                "mouth": (5, 7, 2, 6),
                "runs": "faces_quick",
                "output": "faces_moves_quick.png",
            },
        },
    )
