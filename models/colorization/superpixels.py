"""Superpixels of gray pictures, and a tree of them: data, of which nothing is learned."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

MOST_PIXELS = 2**25
"""The superpixels of pictures with so many pixels in all are remembered."""

_STEP = 20.0
"""For SLIC, so many levels of luma are as far as the side of a superpixel."""

_TRIED = (1.0, 4.0, 16.0, 64.0)
"""So many times that, where superpixels fall apart in noise: SLIC would join the crumbs to one large piece."""


@dataclass(frozen=True)
class Superpixels:
    """The superpixels of a picture, and the maximum spanning tree of their likeness.

    Attributes:
        regions: The superpixel of each pixel, `(h, w)`.
        sizes: The number of pixels of each, `(S,)`.
        parents: Of each superpixel the one above it, or -1, `(S,)`.
        differences: |difference of mean luma| of the two; 0 for the root, `(S,)`.
    """

    regions: Any
    sizes: Any
    parents: Any
    differences: Any


def superpixels(luma: Any, size: int) -> Superpixels:
    """Divides a picture into superpixels, by SLIC, and joins neighbors by a maximum spanning tree.

    Of all trees whose edges are pairs of adjacent superpixels it is the one with the least sum of |difference
    of mean luma|; of several, the same one every time. Its root is in the middle.

    Args:
        luma: `(h, w)`, from 0 to 255.
        size: About how many pixels a superpixel has; with 1 it has one.

    Raises:
        ModuleNotFoundError: scikit-image is not installed.
        ValueError: A number is NaN or infinite.
    """
    luma = np.asarray(luma, dtype=np.float64)
    if not np.isfinite(luma).all():
        raise ValueError(
            "TreeSegments: the luma of a picture is NaN or infinite; it must be from 0 to 255"
        )
    regions = _slic(luma, size)
    sizes = np.bincount(regions.ravel())
    means = np.bincount(regions.ravel(), luma.ravel()) / sizes
    parents = _tree(regions, means)
    differences = np.where(parents < 0, 0.0, np.abs(means - means[parents]))
    small = np.min_scalar_type(len(sizes))
    return Superpixels(regions.astype(small), sizes, parents.astype(np.int32), differences)


def _slic(luma: Any, size: int) -> Any:
    count = round(luma.size / size)
    if size == 1:
        return np.arange(luma.size).reshape(luma.shape)
    if count <= 1:
        return np.zeros(luma.shape, dtype=np.int64)
    try:
        from skimage.segmentation import slic
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "TreeSegments finds superpixels by scikit-image, which is not installed: "
            "pip install 'ppl_vae[colorize]', or use superpixel_size=1"
        ) from error
    contrast = float(np.ptp(luma))  # which scikit-image makes 1
    options = {"n_segments": count, "start_label": 0, "channel_axis": None}
    for more in _TRIED:
        compactness = more * _STEP / contrast if contrast else 1.0
        found = slic(luma, compactness=compactness, **options)
        if found.max() + 1 >= count / 2:
            break
    return np.unique(found, return_inverse=True)[1].reshape(luma.shape)


def _tree(regions: Any, means: Any) -> Any:
    """The parents in a maximum spanning tree of likeness, `(S,)`."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree

    count = len(means)
    if count == 1:
        return np.array([-1])
    beside = (regions[:, :-1], regions[:, 1:]), (regions[:-1], regions[1:])
    ends = np.concatenate([np.stack([a.ravel(), b.ravel()], 1) for a, b in beside])
    ends = np.unique(np.sort(ends[ends[:, 0] != ends[:, 1]], 1), axis=0)
    # Ranks in place of differences: there is no tie, and no 0, which would be no edge.
    order = np.argsort(np.abs(means[ends[:, 0]] - means[ends[:, 1]]), kind="stable")
    rank = np.empty(len(ends))
    rank[order] = np.arange(1, len(ends) + 1)
    graph = coo_array((rank, (ends[:, 0], ends[:, 1])), shape=(count, count)).tocsr()
    tree = minimum_spanning_tree(graph)

    def from_node(start: int) -> Any:
        return breadth_first_order(tree, start, directed=False)

    farthest = from_node(0)[0][-1]
    path, above = from_node(farthest)
    line = [path[-1]]
    while above[line[-1]] >= 0:
        line.append(above[line[-1]])
    return np.maximum(from_node(line[len(line) // 2])[1], -1)


class _Remembered:
    """The superpixels of the pictures that were seen last, by content.

    They belong to the process, not to a model: a copy of a model, and a file, is without them.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[Any, ...], Superpixels] = OrderedDict()
        self._pixels = 0
        self._lock = threading.Lock()

    def __call__(self, luma: Any, size: int) -> Superpixels:
        key = (size, luma.shape, blake2b(luma.tobytes(), digest_size=16).digest())
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        found = superpixels(luma, size)
        with self._lock:
            if key not in self._known:
                self._known[key] = found
                self._pixels += luma.size
            while self._pixels > MOST_PIXELS and len(self._known) > 1:
                _, forgotten = self._known.popitem(last=False)
                self._pixels -= forgotten.regions.size
        return found


remembered = _Remembered()
"""`superpixels`, of which those of the last pictures are remembered: up to `MOST_PIXELS` pixels."""
