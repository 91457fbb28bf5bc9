"""Trees whose nodes are the regions of pictures, as what a pass over all of them at once needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


class RegionTrees:
    """Which pixels of a picture belong together, and which of these regions are neighbors: a forest.

    The regions of all pictures are put in one list, by their depth in their trees: what is computed from the
    leaves to the roots, or back, is computed for all regions of a depth, of all pictures, at once.

    Args:
        regions: The region of each pixel, whole numbers 0, ..., S - 1, `(*batch, h, w)`.
        parents: Of each region the one above it, or -1 for a root, `(*batch, S)`. A picture may have fewer than
            S regions: those without pixels are none, and have the parent -1.

    Raises:
        ValueError: The shapes do not fit together, there is no such region, a region without pixels is in a
            tree, or regions are above each other in a cycle.

    Attributes:
        regions: The region of each pixel, `(*batch, h, w)`.
        parents: Of each region the one above it, `(*batch, S)`.
        nodes: What each region of the list is in `parents`, flattened, `(N,)`.
        sizes: How many regions there are of each depth.
        above: The place in the list of the parent, for each region that is no root, `(N - sizes[0],)`.
        steps: The same for each depth but 0, as the place among the regions of the depth above.
        owners: The picture of each region of the list, `(N,)`.
        places: The place in the list of each pixel's region, for all pixels of all pictures.
        some_pixel: A pixel of each region of the list, among those of all pictures, `(N,)`.

    Example:
        >>> trees = RegionTrees(torch.tensor([[0, 0, 1, 2]]), torch.tensor([1, -1, 1]))
        >>> trees.sizes, trees.nodes, trees.above
        ((1, 2), tensor([1, 0, 2]), tensor([0, 0]))
    """

    def __init__(self, regions: Tensor, parents: Tensor) -> None:
        if regions.dim() < 2 or regions.shape[:-2] != parents.shape[:-1]:
            raise ValueError(
                "RegionTrees needs regions of shape (*batch, height, width) and parents of shape (*batch, S), "
                f"got {tuple(regions.shape)} and {tuple(parents.shape)}"
            )
        self.regions, self.parents = regions.long(), parents.long()
        most = parents.shape[-1]
        count = self.batch_shape.numel()
        flat: Any = self.regions.cpu().numpy().reshape(count, regions.shape[-2:].numel())
        above: Any = self.parents.cpu().numpy().reshape(count, most)
        if ((flat < 0) | (flat >= most)).any() or ((above < -1) | (above >= most)).any():
            raise ValueError(
                f"RegionTrees has parents of {most} regions: regions must be from 0 to {most - 1}, and parents "
                f"from -1, for a root, to {most - 1}"
            )
        start = most * np.arange(count)[:, None]
        flat = (flat + start).ravel()
        none = count * most
        above = np.append(np.where(above < 0, none, above + start).ravel(), none)
        has_pixels = np.bincount(flat, minlength=none + 1) > 0
        linked = above[:-1] < none
        if (linked & ~(has_pixels[:-1] & has_pixels[above[:-1]])).any():
            raise ValueError(
                "RegionTrees: a region without pixels has a parent or is one; give it the parent -1"
            )
        depth = _depths(above)
        nodes = np.flatnonzero(has_pixels[:-1])
        nodes = nodes[np.argsort(depth[nodes], kind="stable")]
        place = np.zeros(none + 1, dtype=np.int64)
        place[nodes] = np.arange(len(nodes))
        places = place[flat]
        some_pixel = np.zeros(len(nodes), dtype=np.int64)
        some_pixel[places] = np.arange(len(flat))
        self.sizes = tuple(int(size) for size in np.bincount(depth[nodes], minlength=1))
        roots = self.sizes[0]

        def on_device(values: Any) -> Tensor:
            return torch.from_numpy(values).to(regions.device)

        self.nodes = on_device(nodes)
        parents_of = place[above[nodes[roots:]]]
        self.above = on_device(parents_of)
        starts = np.repeat(np.cumsum([0, *self.sizes])[:-2], self.sizes[1:])
        self.steps = on_device(parents_of - starts).split(self.sizes[1:])
        self.owners = on_device(nodes // max(most, 1))
        self.places, self.some_pixel = on_device(places), on_device(some_pixel)

    @property
    def batch_shape(self) -> torch.Size:
        """That of the pictures."""
        return self.regions.shape[:-2]

    @property
    def of_pixels(self) -> bool:
        """Whether each region is a single pixel."""
        return len(self.nodes) == len(self.places)

    def expand(self, batch_shape: Sequence[int]) -> RegionTrees:
        """The trees for a larger batch shape: these, if its last dimensions are those of these.

        Args:
            batch_shape: The larger shape.
        """
        batch, own = torch.Size(batch_shape), self.batch_shape
        if batch[len(batch) - len(own) :] == own:
            return self
        regions = self.regions.expand(*batch, *self.regions.shape[-2:])
        return RegionTrees(regions, self.parents.expand(*batch, self.parents.shape[-1]))

    def equals(self, other: RegionTrees) -> bool:
        """Whether the pictures have the same regions, and these the same parents."""
        if self is other:
            return True
        return torch.equal(self.regions, other.regions) and torch.equal(self.parents, other.parents)


def _depths(above: Any) -> Any:
    """How many nodes are above each; the last one of `above` stands for none, and is above itself.

    Each round doubles how far up every node has looked.

    Raises:
        ValueError: There is a circle.
    """
    none = len(above) - 1
    depth, ahead = (above < none).astype(np.int64), above
    for _ in range(max(none, 1).bit_length()):
        depth, ahead = depth + depth[ahead], ahead[ahead]
    if (ahead < none).any():
        raise ValueError(
            "RegionTrees: regions are above each other in a cycle; parents must lead to a root, which has the "
            "parent -1"
        )
    return depth
