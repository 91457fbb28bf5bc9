"""Potts fields: segmentations whose neighboring pixels tend to be of one segment; on lines in closed form."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator
from typing import Any, ClassVar, Self

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints, register_kl

COUPLINGS = -15.0, 60.0
"""Least and largest coupling: beyond these, single precision knows no difference, or overflows."""

Predictions = Generator[tuple[tuple[slice, slice], Tensor], Tensor, None]
"""See `PottsField.predictions`."""


class PottsField(dist.TorchDistribution):
    """P(z) = exp(sum_i u_i(z_i) + sum_(i, j) s_ij [z_i = z_j]) / Z, over the pixels i of a picture, z_i < K.

    The second sum runs over pairs of neighbors. The batch shape is `batch`, the event shape `(h, w)`. A
    subclass says which pairs are neighbors, and sums over all segmentations; entropy, KL, marginals and draws
    follow.

    Args:
        unary: u, `(*batch, h, w, K)`.
        same: s, one number for each pair: larger ones make the two more often the same. Brought between -15
            and 60.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "unary": constraints.independent(constraints.real, 3),
        "same": constraints.independent(constraints.real, 2),
    }
    has_enumerate_support = False

    def __init__(self, unary: Tensor, same: Tensor, validate_args: bool | None = None) -> None:
        batch = torch.broadcast_shapes(unary.shape[:-3], same.shape[:-2])
        self.unary = unary.expand(*batch, *unary.shape[-3:])
        self.same = same.clamp(*COUPLINGS).expand(*batch, *same.shape[-2:])
        super().__init__(batch, unary.shape[-3:-1], validate_args=validate_args)

    @abstractmethod
    def agreement(self, z: Tensor) -> Tensor:
        """Whether the two pixels of each pair are of one segment, `(*batch, ...)` as `same` is."""

    @property
    @abstractmethod
    def log_partition(self) -> Tensor:
        """log Z, `(*batch)`."""

    @property
    @abstractmethod
    def marginals(self) -> Tensor:
        """P(z_i = k), `(*batch, h, w, K)`."""

    @property
    @abstractmethod
    def agreement_probs(self) -> Tensor:
        """P(z_i = z_j) of each pair, as `same`."""

    @abstractmethod
    def of_independent(self, probs: Tensor) -> Tensor:
        """`agreement_probs` of another distribution: of independent pixels with these marginals."""

    def has_neighbors_of(self, other: PottsField) -> bool:
        """Whether the pairs of neighbors are those of the other one."""
        return type(self) is type(other)

    @abstractmethod
    def predictions(self) -> Predictions:
        """What is known of each pixel, given what was seen of those before it: for a code of what is seen.

        With observations y_i of the pixels, independent given z, the product of all sum_k P(z_i = k | y of the
        groups before) P(y_i | z_i = k) is P(y), the sum over all segmentations.

        Yields:
            The rows and columns of a group of pixels, none of which says anything of another given those
            before, and log P(z_i = k | y of the groups before) of these, `(*batch, rows, columns, K)`. To go
            on, `send` log P(y_i | z_i = k) of them, of that shape.
        """

    @property
    def segments(self) -> int:
        """K."""
        return int(self.unary.shape[-1])

    @constraints.dependent_property(is_discrete=True, event_dim=2)
    def support(self) -> Any:
        """Segments, one per pixel."""
        return constraints.independent(constraints.integer_interval(0, self.segments - 1), 2)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        """The same distribution for a larger batch shape."""
        new: Self = self._get_checked_instance(type(self), _instance)  # type: ignore[no-untyped-call]
        batch = torch.Size(batch_shape)
        new.unary = self.unary.expand(*batch, *self.unary.shape[-3:])
        new.same = self.same.expand(*batch, *self.same.shape[-2:])
        super(PottsField, new).__init__(batch, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """log P(z), in nats."""
        if self._validate_args:
            self._validate_sample(value)
        z = value.long()
        batch = torch.broadcast_shapes(self.batch_shape, z.shape[:-2])
        z = z.expand(*batch, *self.event_shape)
        unary = self.unary.expand(*batch, *self.unary.shape[-3:])
        score = unary.gather(-1, z.unsqueeze(-1)).squeeze(-1).sum((-2, -1))
        pairs = (self.same * self.agreement(z)).sum((-2, -1))
        log_p: Tensor = score + pairs - self.log_partition
        return log_p

    def entropy(self) -> Tensor:
        """- E log P(z), in nats, of the batch shape."""
        return self.log_partition - self.expected_score(self.marginals, self.agreement_probs)

    def expected_score(self, marginals: Tensor, agreement: Tensor) -> Tensor:
        """E[sum_i u_i(z_i) + sum_(i, j) s_ij [z_i = z_j]] under a distribution with these marginals."""
        unary = torch.where(marginals > 0, marginals * self.unary, 0.0).sum((-3, -2, -1))
        return unary + (self.same * agreement).sum((-2, -1))


def _kl_fields(q: PottsField, p: PottsField) -> Tensor:
    """E_q of the difference of the scores, and that of the log Z."""
    if not q.has_neighbors_of(p):
        raise NotImplementedError(f"{type(q).__name__} and {type(p).__name__} have other neighbors")
    marginals, agreement = q.marginals, q.agreement_probs
    scores = (field.expected_score(marginals, agreement) for field in (q, p))
    return next(scores) - next(scores) - q.log_partition + p.log_partition


def _kl_independent(q: Any, p: PottsField) -> Tensor:
    """Of independent pixels to a field: minus their entropy and their expected score, plus log Z."""
    base = q.base_dist
    if not isinstance(base, torch.distributions.Categorical) or len(q.event_shape) != 2:
        raise NotImplementedError(
            f"no formula of the KL from {type(base).__name__} to {type(p).__name__}"
        )
    probs = base.logits.exp()
    entropy = -torch.where(probs > 0, probs * base.logits, 0.0).sum((-3, -2, -1))
    return p.log_partition - entropy - p.expected_score(probs, p.of_independent(probs))


register_kl(PottsField, PottsField)(_kl_fields)
register_kl(torch.distributions.Independent, PottsField)(_kl_independent)


class ScanLines(PottsField):
    """A Potts field whose neighbors are those to the left and right: a Markov chain along each line.

    Sums over all K^(h w) segmentations take h w K steps, forward and backward along the lines ("A Tutorial on
    Hidden Markov Models", Rabiner 1989).

    Args:
        unary: u, `(*batch, h, w, K)`.
        same: s, for each pixel but the last of a line that of it and the next one, `(*batch, h, w - 1)`.

    Raises:
        ValueError: The shapes do not fit together.

    Example:
        >>> lines = ScanLines(torch.zeros(1, 3, 2), torch.full((1, 2), 2.0))
        >>> lines.log_prob(torch.tensor([[0, 0, 0]])).exp(), lines.agreement_probs
        (tensor(0.3879), tensor([[0.8808, 0.8808]]))
    """

    def __init__(self, unary: Tensor, same: Tensor, validate_args: bool | None = None) -> None:
        height, width = unary.shape[-3:-1]
        if same.shape[-2:] != (height, width - 1):
            raise ValueError(
                f"ScanLines needs `same` of shape (*batch, {height}, {width - 1}) for pictures of {height} x "
                f"{width} pixels, got {tuple(same.shape)}"
            )
        super().__init__(unary, same, validate_args)

    def agreement(self, z: Tensor) -> Tensor:
        """Whether each pixel and the next one are of one segment, `(*batch, h, w - 1)`."""
        return z[..., 1:] == z[..., :-1]

    @property
    def log_partition(self) -> Tensor:
        """log Z, `(*batch)`."""
        _, log_z = self._forward()
        return log_z.sum(-1)

    @property
    def marginals(self) -> Tensor:
        """P(z_i = k), `(*batch, h, w, K)`."""
        before, _ = self._forward()
        return (before + self._backward()).softmax(-1)

    @property
    def agreement_probs(self) -> Tensor:
        """P(z_i = z_(i + 1)), `(*batch, h, w - 1)`."""
        before, _ = self._forward()
        after = (self._backward() + self.unary)[..., 1:, :].log_softmax(-1)
        # Of all pairs of values, those of the same weigh exp(s) more.
        both = (before[..., :-1, :] + after).logsumexp(-1)
        odds = both.exp()
        return odds * self.same.exp() / (1 + odds * torch.expm1(self.same))

    def predictions(self) -> Predictions:
        """See `PottsField`: column by column, by a forward pass over what is seen."""
        unary, gain = self.unary.unbind(-2), torch.expm1(self.same).unsqueeze(-1).unbind(-2)
        before = unary[0]
        for t, after in enumerate(self._backward().unbind(-2)):
            now = (before + after).log_softmax(-1).unsqueeze(-2)
            seen = yield (slice(None), slice(t, t + 1)), now
            if t < len(gain):
                found = (before + seen.squeeze(-2)).softmax(-1)
                before = torch.log1p(gain[t] * found) + unary[t + 1]

    def of_independent(self, probs: Tensor) -> Tensor:
        """P(z_i = z_(i + 1)) of independent pixels, `(*batch, h, w - 1)`."""
        return (probs[..., 1:, :] * probs[..., :-1, :]).sum(-1)

    @torch.no_grad()
    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 (torch's signature)
        """Draws segmentations, from the end of each line to its beginning, `(*sample_shape, *batch, h, w)`."""
        before, _ = self._forward()
        before = before.expand(*torch.Size(sample_shape), *before.shape)
        z: list[Tensor] = []
        for t in range(self.event_shape[1] - 1, -1, -1):
            logits = before[..., t, :]
            if z:
                is_next = torch.nn.functional.one_hot(z[-1], self.segments)
                logits = logits + self.same[..., t].unsqueeze(-1) * is_next
            z.append(dist.Categorical(logits=logits, validate_args=False).sample())
        return torch.stack(z[::-1], -1)

    def _forward(self) -> tuple[Tensor, Tensor]:
        """log P(z_t | what is at or before t), `(*batch, h, w, K)`, and log Z of each line, `(*batch, h)`."""
        unary, gain = self.unary.unbind(-2), torch.expm1(self.same).unsqueeze(-1).unbind(-2)
        log_z = unary[0].logsumexp(-1, keepdim=True)
        found = [unary[0] - log_z]
        for t in range(1, len(unary)):
            now = torch.log1p(gain[t - 1] * found[-1].exp()) + unary[t]
            total = now.logsumexp(-1, keepdim=True)
            found.append(now - total)
            log_z = log_z + total
        return torch.stack(found, -2), log_z.squeeze(-1)

    def _backward(self) -> Tensor:
        """log of what lies after t, for each z_t, up to a constant: `(*batch, h, w, K)`."""
        unary, gain = self.unary.unbind(-2), torch.expm1(self.same).unsqueeze(-1).unbind(-2)
        found = [torch.zeros_like(unary[-1])]
        for t in range(len(unary) - 2, -1, -1):
            share = (unary[t + 1] + found[-1]).softmax(-1)
            found.append(torch.log1p(gain[t] * share))
        return torch.stack(found[::-1], -2)
