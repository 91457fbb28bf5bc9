"""Potts fields on the grid of pixels: exact for narrow pictures, with a bound of the normalizer for others."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import register_kl

from ppl_vae.distributions.potts_field import PottsField, Predictions, ScanLines

MOST_STATES = 2**13
"""Most joint values of a line of pixels that are summed over."""

SWEEPS = 50
"""Passes over the lines of a picture that is too wide for exact draws."""


class PottsGrid(PottsField):
    """A Potts field whose neighbors are those to the left and right, above and below.

    With K^w up to 8192 values of a line (of the shorter side), all is exact: the sum over all segmentations
    takes h w steps of a transfer matrix, pixel by pixel, with K^w numbers each. For wider pictures nobody knows
    log Z. As log Z is convex, and the score is the mean of one of the lines alone and one of the columns alone,
    each with twice the coupling,

        log Z(u, s) <= 1/2 log Z_lines(u, 2 s) + 1/2 log Z_columns(u, 2 s)

    (the trees of "A New Class of Upper Bounds on the Log Partition Function", arXiv:1301.0610), both exact.
    `log_prob` and minus the KL to this field are then lower bounds, so that an ELBO with it is still one.
    Without couplings they are exact.

    Args:
        unary: u, `(*batch, h, w, K)`.
        across: s of each pixel but the last of a line and that to the right, `(*batch, h, w - 1)`.
        down: s of each pixel but those of the last line and that below, `(*batch, h - 1, w)`.

    Raises:
        ValueError: The shapes do not fit together.

    Example:
        >>> grid = PottsGrid(torch.zeros(2, 2, 2), torch.full((2, 1), 1.0), torch.full((1, 2), 1.0))
        >>> grid.is_exact, grid.log_prob(torch.zeros(2, 2)).exp()
        (True, tensor(0.2732))
    """

    def __init__(
        self, unary: Tensor, across: Tensor, down: Tensor, validate_args: bool | None = None
    ) -> None:
        height, width = unary.shape[-3:-1]
        if across.shape[-2:] != (height, width - 1) or down.shape[-2:] != (height - 1, width):
            raise ValueError(
                f"PottsGrid needs `across` of shape (*batch, {height}, {width - 1}) and `down` of "
                f"shape (*batch, {height - 1}, {width}) for pictures of {height} x {width} pixels, got "
                f"{tuple(across.shape)} and {tuple(down.shape)}"
            )
        # One tensor of all couplings, of h lines: those below the last line are none.
        down = torch.nn.functional.pad(down, (0, 0, 0, 1))
        batch = torch.broadcast_shapes(across.shape[:-2], down.shape[:-2])
        same = torch.cat([across.expand(*batch, -1, -1), down.expand(*batch, -1, -1)], -1)
        super().__init__(unary, same, validate_args)

    @property
    def across(self) -> Tensor:
        """s of neighbors in a line, `(*batch, h, w - 1)`."""
        return self.same[..., : self.event_shape[1] - 1]

    @property
    def down(self) -> Tensor:
        """s of neighbors in a column, `(*batch, h - 1, w)`."""
        return self.same[..., :-1, self.event_shape[1] - 1 :]

    @property
    def is_exact(self) -> bool:
        """Whether log Z is known."""
        return bool(self.segments ** min(self.event_shape) <= MOST_STATES)

    def agreement(self, z: Tensor) -> Tensor:
        """Whether each pixel and its neighbor are of one segment, as `same`: to the right, then below."""
        across = z[..., 1:] == z[..., :-1]
        down = z[..., 1:, :] == z[..., :-1, :]
        return torch.cat([across, torch.nn.functional.pad(down, (0, 0, 0, 1))], -1)

    def of_independent(self, probs: Tensor) -> Tensor:
        """`agreement_probs` of independent pixels with these marginals."""
        across = (probs[..., 1:, :] * probs[..., :-1, :]).sum(-1)
        down = (probs[..., 1:, :, :] * probs[..., :-1, :, :]).sum(-1)
        return torch.cat([across, torch.nn.functional.pad(down, (0, 0, 0, 1))], -1)

    @property
    def log_partition(self) -> Tensor:
        """log Z, `(*batch)`; above it if `is_exact` is false."""
        if self.is_exact:
            return _log_partition(*self._narrow(), [])
        lines = ScanLines(self.unary, 2 * self.across, validate_args=False)
        columns = ScanLines(
            self.unary.transpose(-3, -2), 2 * self.down.transpose(-2, -1), validate_args=False
        )
        return 0.5 * (lines.log_partition + columns.log_partition)

    @property
    def marginals(self) -> Tensor:
        """P(z_i = k), `(*batch, h, w, K)`: the gradient of log Z by u.

        Raises:
            NotImplementedError: The picture is too wide.
        """
        return self._slope(self.unary)

    @property
    def agreement_probs(self) -> Tensor:
        """P(z_i = z_j), as `same`: the gradient of log Z by s.

        Raises:
            NotImplementedError: The picture is too wide.
        """
        return self._slope(self.same)

    def predictions(self) -> Predictions:
        """See `PottsField`: pixel by pixel, by the marginals after each, in the square of the time for one.

        Raises:
            NotImplementedError: The picture is too wide.
        """
        field = self.expand(self.batch_shape)
        field.unary = self.unary.clone()
        for r in range(self.event_shape[0]):
            for c in range(self.event_shape[1]):
                where = slice(r, r + 1), slice(c, c + 1)
                seen = yield where, field.marginals[..., r : r + 1, c : c + 1, :].log()
                field.unary = field.unary.clone()
                field.unary[..., r : r + 1, c : c + 1, :] += seen

    @torch.no_grad()
    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 (torch's signature)
        """Draws segmentations, `(*sample_shape, *batch, h, w)`.

        Exact if `is_exact` is true; otherwise 50 passes of Gibbs sampling, which draw every other line at once
        given those between them.
        """
        shape = torch.Size(sample_shape)
        if not self.is_exact:
            return self._gibbs(shape)
        unary, across, down = (v.expand(*shape, *v.shape) for v in self._narrow())
        z = _draw(unary, across, down)
        return z.transpose(-2, -1) if self._is_wide else z

    @torch.no_grad()
    def mean_field(self, sweeps: int = 10) -> ScanLines:
        """Lines that are independent of each other, and as near to this field as such can be.

        Each line is a Markov chain. In a sweep every other line is given what the lines beside it are expected
        to be, then the others: KL(q || p) falls with each, to a minimum that may be a local one ("Exploiting
        Tractable Substructures in Intractable Networks", Saul and Jordan 1996). Without couplings down it is
        this field.

        Args:
            sweeps: How many.

        Example:
            >>> from torch.distributions import kl_divergence
            >>> grid = PottsGrid(torch.zeros(2, 2, 2), torch.full((2, 1), 1.0), torch.full((1, 2), 0.5))
            >>> q = grid.mean_field()
            >>> q.event_shape, kl_divergence(q, grid) > 0
            (torch.Size([2, 2]), tensor(True))
        """
        q = ScanLines(self.unary, self.across, validate_args=False)
        down = self.down.unsqueeze(-1)
        unary, expected = self.unary.clone(), q.marginals
        for sweep in range(2 * sweeps if self.event_shape[0] > 1 else 0):
            around = torch.zeros_like(unary)
            around[..., 1:, :, :] += down * expected[..., :-1, :, :]
            around[..., :-1, :, :] += down * expected[..., 1:, :, :]
            now = slice(sweep % 2, None, 2)
            unary[..., now, :, :] = (self.unary + around)[..., now, :, :]
            lines = ScanLines(unary[..., now, :, :], self.across[..., now, :], validate_args=False)
            expected = expected.clone()
            expected[..., now, :, :] = lines.marginals
        return ScanLines(unary, self.across, validate_args=False)

    @property
    def _is_wide(self) -> bool:
        return bool(self.event_shape[1] > self.event_shape[0])

    def _narrow(self) -> tuple[Tensor, Tensor, Tensor]:
        """u, and s across and down, of the picture turned so that its lines are along the shorter side."""
        if not self._is_wide:
            return self.unary, self.across, self.down
        across, down = self.down.transpose(-2, -1), self.across.transpose(-2, -1)
        return self.unary.transpose(-3, -2), across, down

    def _slope(self, by: Tensor) -> Tensor:
        if not self.is_exact:
            raise NotImplementedError(
                f"the marginals of a Potts field of {self.event_shape[0]} x {self.event_shape[1]} pixels with "
                f"{self.segments} segments are not known: use a guide with independent pixels"
            )
        if torch.is_inference_mode_enabled():  # nothing has a gradient there
            with torch.inference_mode(False):
                field = self.expand(self.batch_shape)
                field.unary, field.same = self.unary.clone(), self.same.clone()
                return field._slope(field.unary if by is self.unary else field.same)
        keeps_graph = torch.is_grad_enabled() and (
            self.unary.requires_grad or self.same.requires_grad
        )
        with torch.enable_grad():
            field, x = self, by
            if not by.requires_grad:
                field, x = self.expand(self.batch_shape), by.detach().requires_grad_()
                if by is self.unary:
                    field.unary = x
                else:
                    field.same = x
            of = field.log_partition.sum()
            if not of.requires_grad:  # a single pixel has no neighbors
                return torch.zeros_like(by)
            slopes = torch.autograd.grad(of, x, create_graph=keeps_graph, materialize_grads=True)
        found: Tensor = slopes[0]
        return found

    def _gibbs(self, shape: torch.Size) -> Tensor:
        unary = self.unary.expand(*shape, *self.unary.shape)
        z: Tensor = dist.Categorical(logits=unary, validate_args=False).sample()
        down = self.down.unsqueeze(-1)
        for sweep in range(2 * SWEEPS):
            around = torch.zeros_like(unary)
            is_one = torch.nn.functional.one_hot(z, self.segments)
            around[..., 1:, :, :] += down * is_one[..., :-1, :, :]
            around[..., :-1, :, :] += down * is_one[..., 1:, :, :]
            drawn = slice(sweep % 2, None, 2)
            lines = ScanLines(
                (unary + around)[..., drawn, :, :],
                self.across[..., drawn, :].expand(*shape, *self.across[..., drawn, :].shape),
                validate_args=False,
            )
            z[..., drawn, :] = lines.sample()
        return z


def _kl_lines(q: ScanLines, p: PottsGrid) -> Tensor:
    """Of lines that are independent of each other: minus their entropy and expected score, plus log Z."""
    marginals = q.marginals
    agreement = torch.cat(
        [q.agreement_probs, p.of_independent(marginals)[..., q.same.shape[-1] :]], -1
    )
    return p.log_partition - q.entropy() - p.expected_score(marginals, agreement)


register_kl(ScanLines, PottsGrid)(_kl_lines)


def _log_partition(unary: Tensor, across: Tensor, down: Tensor, states: list[Tensor]) -> Tensor:
    """log Z, pixel by pixel; `states` gets the messages before each pixel, `(*batch, K^c, K, K^(w - 1 - c))`.

    A message holds log of the sum over all that came before, for all joint values of the last w pixels.
    """
    batch, (height, width, k) = unary.shape[:-3], unary.shape[-3:]
    same = torch.eye(k, dtype=unary.dtype, device=unary.device)
    state = unary[..., 0, 0, :]
    for c in range(1, width):
        coupled = across[..., 0, c - 1, None, None, None] * same
        state = state.reshape(*batch, -1, k, 1) + coupled + unary[..., 0, c, None, None, :]
    for r in range(1, height):
        for c in range(width):
            state = state.reshape(*batch, k**c, k, k ** (width - 1 - c))
            states.append(state)
            gain = torch.expm1(down[..., r - 1, c, None, None, None])
            total = state.logsumexp(-2, keepdim=True)
            state = (
                total
                + torch.log1p(gain * torch.exp(state - total))
                + unary[..., r, c, None, :, None]
            )
            if c > 0:
                parts = state.reshape(*batch, k ** (c - 1), k, k, -1)
                state = parts + across[..., r, c - 1, None, None, None, None] * same.unsqueeze(-1)
    state = state.reshape(*batch, -1)
    states.append(state)
    return state.logsumexp(-1)


def _draw(unary: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """A draw for each batch: the last line from the last message, then pixel by pixel backward."""
    batch, (height, width, k) = unary.shape[:-3], unary.shape[-3:]
    states: list[Tensor] = []
    _log_partition(unary, across, down, states)
    index = dist.Categorical(logits=states.pop(), validate_args=False).sample()
    line: list[Tensor] = []
    for _ in range(width):
        line.insert(0, index % k)
        index = index // k
    z = [list(line)]
    for r in range(height - 1, 0, -1):
        for c in range(width - 1, -1, -1):
            state = states.pop()
            before, after = (torch.zeros_like(line[0]) for _ in range(2))
            for value in line[:c]:
                before = before * k + value
            for value in line[c + 1 :]:
                after = after * k + value
            flat = state.movedim(-2, -1).flatten(-3, -2)
            place = before * state.shape[-1] + after
            logits = flat.gather(-2, place[..., None, None].expand(*batch, 1, k)).squeeze(-2)
            is_one = torch.nn.functional.one_hot(line[c], k)
            logits = logits + down[..., r - 1, c, None] * is_one
            line[c] = dist.Categorical(logits=logits, validate_args=False).sample()
        z.insert(0, list(line))
    return torch.stack([torch.stack(each, -1) for each in z], -2)
