"""Patches of photos as rows, for a training from the command line."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vae.data.load import Data
from ppl_vae.data.photos import PhotoData, Photos, load_photos
from ppl_vae.runtime import require_count, require_seed

_HELD_OUT = 10
"""One photo of so many is kept apart for validation."""

_FEWEST, _SHARE = 16, 20
"""Patches of held-out photos: one for so many training patches, and no fewer than these."""


@dataclass(frozen=True, eq=False, repr=False)
class PatchData(Data[tuple[Tensor, Tensor]]):
    """Patches of photos: chroma and luma, `(n, h, w, 2)` and `(n, h, w)`, in three splits.

    Attributes:
        photos: Those that they are cut out of: `train` (with those for validation), and `test`.
    """

    photos: PhotoData | None = None

    def __repr__(self) -> str:
        counts = [len(rows[0]) for rows in (self.train, self.validation, self.test)]
        side = self.train[1].shape[-1]
        return (
            f"<{self.name}: {counts[0]} training, {counts[1]} validation and {counts[2]} test patches of "
            f"{side} x {side} pixels>"
        )


def load_patches(
    name: str = "skimage",
    *,
    longest: int | None = 240,
    patch_size: int = 64,
    patches: int = 2000,
    seed: int = 0,
) -> PatchData:
    """Cuts patches out of photos: of those to train on, of one in ten of these for validation, and of others.

    The patches of the test photos do not depend on the seed.

    Args:
        name: "skimage" for the photos that scikit-image contains, or "folder:PATH", as for `load_photos`.
        longest: Longest side of a photo in pixels: larger ones are reduced to it; null keeps them as they are.
        patch_size: Side of a patch in pixels.
        patches: How many patches to train on.
        seed: Seed of the choice of photos for validation, and of the places of the patches.

    Raises:
        TypeError: An argument is not what it must be.
        ValueError: The name is unknown, or a split has no photo as large as a patch.
        FileNotFoundError: The folder does not exist.
        ModuleNotFoundError: scikit-image is not installed.
    """
    require_count("patch_size", patch_size, 1)
    require_count("patches", patches, 1)
    require_seed(seed)
    photos = load_photos(name, longest=longest, seed=0)
    order = torch.randperm(len(photos.train), generator=torch.Generator().manual_seed(seed))
    held = min(max(1, round(len(order) / _HELD_OUT)), len(order) - 1)
    chosen = [photos.train[int(i)] for i in order]
    train, validation = Photos(chosen[held:]), Photos(chosen[:held])
    few = max(_FEWEST, patches // _SHARE)
    return PatchData(
        name,
        _cut(train, "training", patch_size, patches, seed),
        _cut(validation if held else train, "validation", patch_size, few, seed + 1),
        _cut(photos.test, "test", patch_size, few, 0),
        photos=photos,
    )


def _cut(photos: Photos, what: str, size: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    largest = max(min(photo.luma.shape) for photo in photos)
    if largest < size:
        raise ValueError(
            f"no {what} photo has {size} x {size} pixels, the largest has a shorter side of {largest}: choose "
            f"a patch_size of at most {largest}, or larger photos (longest)"
        )
    return photos.patches(size, count, seed)
