"""Potts fields on trees whose nodes are regions of a picture: exact, by belief propagation."""

from __future__ import annotations

from typing import Any, Self

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vae.distributions.potts_field import PottsField, Predictions
from ppl_vae.distributions.region_trees import RegionTrees

_ONE_SEGMENT = (
    "all pixels of a region are of one segment, but independent pixels can be of several, so that their KL is "
    "infinite. Use Exact as the guide, or regions of one pixel (superpixel_size=1)"
)


class PottsTree(PottsField):
    """A Potts field of regions: all pixels of a region are of one segment, and the regions are those of a tree.

    P(z) = exp(sum_i u_i(z_i) + sum_(a, b) s_ab [z_a = z_b]) / Z over the segmentations that are constant in
    each region; any other has the probability 0. The first sum runs over pixels, the second over the edges of
    the tree. Sums over all K^S segmentations take S K steps, from the leaves to the roots and back ("Reverend
    Bayes on Inference Engines: A Distributed Hierarchical Approach", Pearl 1982). There may be several trees.

    Args:
        unary: u, `(*batch, h, w, K)`.
        couplings: s of each region and its parent, `(*batch, S)`; what it is for roots does not matter.
        trees: The regions, and their parents. Its batch shape may be the last dimensions of `batch`.

    Raises:
        ValueError: The shapes do not fit together.

    Example:
        >>> trees = RegionTrees(torch.tensor([[0, 0, 1]]), torch.tensor([-1, 0]))
        >>> field = PottsTree(torch.zeros(1, 3, 2), torch.tensor([0.0, 2.0]), trees)
        >>> field.log_prob(torch.tensor([[[0, 0, 0]], [[0, 0, 1]], [[0, 1, 1]]])).exp()
        tensor([0.4404, 0.0596, 0.0000])
    """

    def __init__(
        self,
        unary: Tensor,
        couplings: Tensor,
        trees: RegionTrees,
        validate_args: bool | None = None,
    ) -> None:
        size, count = trees.regions.shape[-2:], trees.parents.shape[-1]
        if unary.shape[-3:-1] != size or couplings.shape[-1:] != (count,):
            raise ValueError(
                f"PottsTree needs `unary` of shape (*batch, {size[0]}, {size[1]}, K) and `couplings` of shape "
                f"(*batch, {count}) for trees of {count} regions in pictures of {size[0]} x {size[1]} pixels, "
                f"got {tuple(unary.shape)} and {tuple(couplings.shape)}"
            )
        batch = torch.broadcast_shapes(unary.shape[:-3], couplings.shape[:-1], trees.batch_shape)
        self.trees = trees.expand(batch)
        same = couplings.unsqueeze(-2).expand(*batch, 1, count)
        super().__init__(unary, same, validate_args)

    @property
    def couplings(self) -> Tensor:
        """s of each region and its parent, `(*batch, S)`."""
        return self.same.squeeze(-2)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        """The same distribution for a larger batch shape."""
        new = super().expand(batch_shape, _instance)
        new.trees = self.trees.expand(batch_shape)
        return new

    def has_neighbors_of(self, other: PottsField) -> bool:
        """Whether the other one is a field of the same trees."""
        if not isinstance(other, PottsTree):
            return False
        batch = torch.broadcast_shapes(self.trees.batch_shape, other.trees.batch_shape)
        return self.trees.expand(batch).equals(other.trees.expand(batch))

    def log_prob(self, value: Tensor) -> Tensor:
        """log P(z), in nats; -inf where the pixels of a region are of several segments."""
        log_p = super().log_prob(value)
        return log_p.masked_fill(
            self._is_impossible(value.expand(*log_p.shape, -1, -1)), -torch.inf
        )

    def why_impossible(self, value: Tensor) -> str | None:
        """Why segmentations have no probability, for a message; None if they have one."""
        batch = torch.broadcast_shapes(value.shape[:-2], self.batch_shape)
        impossible = self._is_impossible(value.expand(*batch, -1, -1))
        return _ONE_SEGMENT if bool(impossible.any()) else None

    def _is_impossible(self, z: Tensor) -> Tensor:
        """Whether pixels of a region are of several segments, `(*batch)`."""
        trees = self.trees.expand(z.shape[:-2])
        pixels = self._in_a_row(z, trees, 0)
        differs = pixels != pixels[..., trees.some_pixel][..., trees.places]
        return differs.reshape(z.shape).flatten(-2).any(-1)

    def agreement(self, z: Tensor) -> Tensor:
        """Whether each region and its parent are of one segment, `(*batch, 1, S)`; for roots it is false."""
        trees = self.trees.expand(z.shape[:-2])
        values = self._in_a_row(z, trees, 0)[..., trees.some_pixel]
        agree = values[..., trees.sizes[0] :] == values[..., trees.above]
        return self._of_edges(agree, trees)

    @property
    def log_partition(self) -> Tensor:
        """log Z, `(*batch)`."""
        beliefs, _ = self._upward()
        of_nodes = torch.cat(beliefs, -2).logsumexp(-1)
        lead, own = self._lead(self.trees), self.trees.batch_shape
        zeros = of_nodes.new_zeros(*lead, own.numel())
        return zeros.index_add(-1, self.trees.owners, of_nodes).reshape(self.batch_shape)

    @property
    def marginals(self) -> Tensor:
        """P(z_i = k), those of its region for each pixel, `(*batch, h, w, K)`."""
        beliefs, messages = self._upward()
        logits, _ = self._downward(beliefs, messages)
        found = torch.cat(logits, -2).softmax(-1).index_select(-2, self.trees.places)
        return found.reshape(self.unary.shape)

    @property
    def agreement_probs(self) -> Tensor:
        """P(z_a = z_b) of each region and its parent, `(*batch, 1, S)`; 0 for roots."""
        beliefs, messages = self._upward()
        _, others = self._downward(beliefs, messages)
        if not others:
            return torch.zeros_like(self.same)
        below = torch.cat(beliefs[1:], -2).log_softmax(-1)
        # Of all pairs of values, those of the same weigh exp(s) more.
        odds = (below + torch.cat(others, -2).log_softmax(-1)).logsumexp(-1).exp()
        same = self._of_nodes(self.same.flatten(-2))[..., self.trees.sizes[0] :]
        return self._of_edges(odds * same.exp() / (1 + odds * torch.expm1(same)), self.trees)

    def of_independent(self, probs: Tensor) -> Tensor:
        """P(z_a = z_b) of independent pixels, `(*batch, 1, S)`, where each region is one pixel.

        Raises:
            ValueError: A region has several pixels. Independent ones may be of several segments, which this
                field has no probability for: their KL to it is infinite.
        """
        if not self.trees.of_pixels:
            raise ValueError(f"{type(self).__name__}: {_ONE_SEGMENT}")
        trees = self.trees.expand(probs.shape[:-3])
        pixels = self._in_a_row(probs, trees, 1).index_select(-2, trees.some_pixel)
        pairs = pixels[..., trees.sizes[0] :, :] * pixels.index_select(-2, trees.above)
        return self._of_edges(pairs.sum(-1), trees)

    def predictions(self) -> Predictions:
        """See `PottsField`.

        Raises:
            NotImplementedError: Always: it would take a pass over the tree for each pixel.
        """
        raise NotImplementedError(
            "the pixels of regions on a tree are not known one after the other"
        )

    @torch.no_grad()
    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 (torch's signature)
        """Draws segmentations, from the roots to the leaves, `(*sample_shape, *batch, h, w)`."""
        shape, trees = torch.Size(sample_shape), self.trees
        beliefs, _ = self._upward()
        same = self._of_nodes(self.same.flatten(-2)).unsqueeze(-1).split(trees.sizes, -2)
        z: list[Tensor] = []
        for depth, logits in enumerate(beliefs):
            logits = logits.expand(*shape, *logits.shape)
            if depth:
                parents = z[-1][..., trees.steps[depth - 1]]
                is_same = torch.nn.functional.one_hot(parents, self.segments)
                logits = logits + same[depth] * is_same
            z.append(dist.Categorical(logits=logits, validate_args=False).sample())
        found = torch.cat(z, -1)[..., trees.places]
        return found.reshape(*shape, *self.batch_shape, *self.event_shape)

    def _upward(self) -> tuple[list[Tensor], list[Tensor]]:
        """What each region and all below it say of its segment, and what they tell its parent.

        Returns:
            Logits of each depth, `(*lead, regions of this depth, K)`, and of each depth but 0 what is added to
            those of the parent; without the logsumexp of the logits of the child. So log Z is the sum of that
            over all regions.
        """
        trees = self.trees
        pixels = self._in_a_row(self.unary, trees, 1)
        zeros = pixels.new_zeros(*pixels.shape[:-2], len(trees.nodes), self.segments)
        beliefs = list(zeros.index_add(-2, trees.places, pixels).split(trees.sizes, -2))
        gain = torch.expm1(self._of_nodes(self.same.flatten(-2))).unsqueeze(-1)
        gains, messages = gain.split(trees.sizes, -2), []
        for depth in range(len(beliefs) - 1, 0, -1):
            messages.append(torch.log1p(gains[depth] * beliefs[depth].softmax(-1)))
            parents = trees.steps[depth - 1]
            beliefs[depth - 1] = beliefs[depth - 1].index_add(-2, parents, messages[-1])
        return beliefs, messages[::-1]

    def _downward(
        self, beliefs: list[Tensor], messages: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """What all regions say of the segment of each, and what all but those below it say of its parent's.

        Returns:
            Logits of each depth, `(*lead, regions of this depth, K)`, and the latter, of each depth but 0.
        """
        gain = torch.expm1(self._of_nodes(self.same.flatten(-2))).unsqueeze(-1)
        gains = gain.split(self.trees.sizes, -2)
        logits, others = [beliefs[0]], []
        for depth, parents in enumerate(self.trees.steps, 1):
            others.append(logits[-1].index_select(-2, parents) - messages[depth - 1])
            logits.append(beliefs[depth] + torch.log1p(gains[depth] * others[-1].softmax(-1)))
        return logits, others

    def _lead(self, trees: RegionTrees) -> torch.Size:
        """The dimensions of the batch that the trees do not have."""
        return self.batch_shape[: len(self.batch_shape) - len(trees.batch_shape)]

    def _in_a_row(self, values: Tensor, trees: RegionTrees, further: int) -> Tensor:
        """Those of the pixels of all pictures, `(*lead, pixels, ...)`, with `further` dimensions at the end."""
        lead = values.dim() - further - 2 - len(trees.batch_shape)
        last = values.shape[values.dim() - further :]
        return values.reshape(*values.shape[:lead], len(trees.places), *last)

    def _of_nodes(self, values: Tensor) -> Tensor:
        """Those of the regions in the list, `(*lead, N)`, of those of `parents`, `(*batch, S)`."""
        lead = self._lead(self.trees)
        flat = values.reshape(*lead, self.trees.parents.numel())
        return flat.index_select(-1, self.trees.nodes)

    def _of_edges(self, values: Tensor, trees: RegionTrees) -> Tensor:
        """`(*batch, 1, S)`, of those of all regions but roots, `(*lead, N - roots)`; 0 for others."""
        zeros = values.new_zeros(*values.shape[:-1], trees.parents.numel())
        found = zeros.index_copy(-1, trees.nodes[trees.sizes[0] :], values)
        own = (*trees.batch_shape, 1, trees.parents.shape[-1])
        return found.reshape(*values.shape[:-1], *own)
