"""Connectionist temporal classification: the labels of a sequence, with a latent alignment."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_vae.distributions import IMPOSSIBLE
from ppl_vae.networks import Rebuildable, full_precision, require_object

BLANK = 0
"""The symbol that stands for no label; it also fills up shorter rows of labels."""


class CTC(Rebuildable, nn.Module):
    """p(x | frames) with labels x, summed over their alignments z to the frames.

    Every frame emits a symbol, z_t ~ Categorical(softmax(network(frames)_t)), independently given
    the frames. The labels are a function of z: repeats are merged, then blanks dropped, so that
    `a a - a b b` and `a - - a - b` both mean `a a b`. So p(x | z) = 1 if x = collapse(z), else 0, and

        p(x | frames) = sum over z with collapse(z) = x of prod_t p(z_t | frames),

    computed by dynamic programming over the labels with blanks between them, in O(T U) (Graves et al. 2006,
    "Connectionist Temporal Classification", ICML). `-log_evidence` is the CTC loss.

    Symbol 0 is the blank and the others are labels. A row of x, `(n, U)`, holds its labels and then
    zeros. `lengths`, `(n,)`, is the number of frames of each row, if some have fewer than T; frames
    beyond it are ignored, and z is blank there. `x`, `frames` and `lengths` are one batch:
    `evaluate(model, Exact(model), (x, frames, lengths))`. To train, sum out the alignments, because
    the gradient through draws of them is noisy: `fit(program, lambda *batch: None, (x, frames))` with

        def program(x, frames):
            with pyro.plate("data", len(x), dim=-1):
                pyro.factor("x", model.log_evidence(x, frames))

    The sites are `z` and `x`, inside `pyro.plate("data", n, dim=-1)`; plates over samples go
    outside, at `dim=-2`.

    Args:
        network: Maps frames `(n, T, *)` to logits of the symbols, `(n, T, symbols)`. Values
            beyond a row's length must not affect the logits within it.

    Example:
        >>> model = CTC(nn.Linear(8, 5))  # frames of 8 numbers, a blank and 4 labels
        >>> x, frames = torch.tensor([[3, 3, 1], [2, 0, 0]]), torch.randn(2, 6, 8)
        >>> model.log_evidence(x, frames).shape
        torch.Size([2])
        >>> z = model.posterior(x, frames).sample()
        >>> collapse(z)[:, :3]
        tensor([[3, 3, 1],
                [2, 0, 0]])
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        require_object(self, "network", network, "forward", "torch.nn.Linear(8, 5)")
        self.network = network

    def forward(self, x: Tensor, frames: Tensor, lengths: Tensor | None = None) -> None:
        """Runs the model on labels `x`, `(n, U)`, given `frames`, `(n, T, *)`.

        Raises:
            ValueError: The labels of a row are not followed by zeros only.
        """
        _require_padded(x)
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", self.prior(frames, lengths))
            labels = collapse(z)
            kept = torch.nn.functional.pad(labels, (0, x.shape[-1]))[..., : x.shape[-1]]
            lost = (labels[..., x.shape[-1] :] != BLANK).any(-1)
            log_density = torch.zeros(lost.shape, device=x.device).masked_fill(lost, -torch.inf)
            pyro.sample("x", dist.Delta(kept, log_density, event_dim=1), obs=x)

    def prior(self, frames: Tensor, lengths: Tensor | None = None) -> dist.Independent:
        """p(z | frames), of batch shape `(n,)` and event shape `(T,)`."""
        return dist.Independent(dist.Categorical(logits=self._log_probs(frames, lengths)), 1)

    def log_evidence(self, x: Tensor, frames: Tensor, lengths: Tensor | None = None) -> Tensor:
        """log p(x | frames) of every row, `(n,)`, in nats; differentiable.

        It is -inf, without a gradient, for rows that have too few frames for their labels.

        Raises:
            ValueError: The labels of a row are not followed by zeros only, or are not among the
                network's symbols.
        """
        log_z = _Lattice(self._log_probs(frames, lengths), x).log_normalizer
        return torch.where(log_z > IMPOSSIBLE / 2, log_z, -torch.inf)

    def posterior(
        self, x: Tensor, frames: Tensor, lengths: Tensor | None = None
    ) -> AlignmentPosterior:
        """p(z | x, frames), of batch shape `(n,)` and event shape `(T,)`.

        Raises:
            ValueError: As for `log_evidence`, or a row has no alignment.
        """
        return AlignmentPosterior(self._log_probs(frames, lengths), x)

    def _log_probs(self, frames: Tensor, lengths: Tensor | None) -> Tensor:
        log_probs = full_precision(self.network(frames)).log_softmax(-1)
        if lengths is None:
            return log_probs
        behind = torch.arange(frames.shape[1], device=frames.device) >= lengths.unsqueeze(-1)
        certain = torch.full_like(log_probs[0, 0], -torch.inf)
        certain[BLANK] = 0.0
        return torch.where(behind.unsqueeze(-1), certain, log_probs)


def collapse(z: Tensor) -> Tensor:
    """Merges repeats and drops blanks of `z`, `(*, T)`: returns the labels, then zeros, `(*, T)`.

    Example:
        >>> collapse(torch.tensor([1, 1, 0, 1, 2, 2]))
        tensor([1, 1, 2, 0, 0, 0])
    """
    before = torch.nn.functional.pad(z, (1, 0), value=BLANK)[..., :-1]
    kept = (z != BLANK) & (z != before)
    order = kept.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)
    return torch.where(kept, z, BLANK).gather(-1, order)


class AlignmentPosterior(dist.TorchDistribution):
    """p(z | x, frames): a path through the labels, sampled exactly from its end to its beginning.

    Args:
        log_probs: log p(z_t = s | frames), `(n, T, symbols)`.
        x: Labels followed by zeros, `(n, U)`.

    Raises:
        ValueError: The labels of a row are not followed by zeros only, are not among the symbols,
            or are too many for its frames.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012

    def __init__(self, log_probs: Tensor, x: Tensor, validate_args: bool | None = None) -> None:
        self.log_probs = log_probs
        self.x = x
        self._lattice = _Lattice(log_probs, x)
        super().__init__(log_probs.shape[:1], log_probs.shape[1:2], validate_args=validate_args)
        if is_validation_enabled():
            hopeless = (self._lattice.log_normalizer <= IMPOSSIBLE / 2).nonzero().flatten().tolist()
            if hopeless:
                raise ValueError(
                    f"the labels of row {hopeless[0]} (counted from 0; of {len(hopeless)} such rows) "
                    f"have no alignment: a row needs a frame for each label and one more between "
                    f"equal neighbors; leave out such rows or give more frames"
                )

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        """Symbols, one per frame."""
        symbols = constraints.integer_interval(0, self.log_probs.shape[-1] - 1)
        return constraints.independent(symbols, 1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws alignments, `(*sample_shape, n, T)`."""
        with torch.no_grad():
            return self._lattice.sample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(z | x, frames), -inf where `value` does not collapse to x."""
        if self._validate_args:
            self._validate_sample(value)
        log_probs = self.log_probs.expand(*value.shape, self.log_probs.shape[-1])
        log_joint = log_probs.gather(-1, value.long().unsqueeze(-1)).squeeze(-1).sum(-1)
        num_frames, width = value.shape[-1], self.x.shape[-1]
        size = max(num_frames, width)
        labels = torch.nn.functional.pad(collapse(value), (0, size - num_frames))
        fits = (labels == torch.nn.functional.pad(self.x, (0, size - width))).all(-1)
        log_q = log_joint - self._lattice.log_normalizer
        return torch.where(fits, log_q, -torch.inf)


class _Lattice:
    """The forward pass over the states: blank, x_1, blank, x_2, ..., x_U, blank.

    From one frame to the next a path stays, moves one state on, or moves two states on if that skips
    a blank between different labels. Every alignment of x is one path.
    """

    def __init__(self, log_probs: Tensor, x: Tensor) -> None:
        _require_padded(x)
        if is_validation_enabled() and x.numel() and int(x.max()) >= log_probs.shape[-1]:
            raise ValueError(
                f"the network gives logits for {log_probs.shape[-1]} symbols, so that labels are 1 "
                f"to {log_probs.shape[-1] - 1}, but x holds {int(x.max())}"
            )
        labels = x.long()
        num_states = 2 * labels.shape[-1] + 1
        self.symbols = labels.new_full((len(labels), num_states), BLANK)
        self.symbols[:, 1::2] = labels
        self.skips = torch.zeros_like(self.symbols, dtype=torch.bool)
        self.skips[:, 3::2] = (labels[:, 1:] != labels[:, :-1]) & (labels[:, 1:] != BLANK)
        self.last = 2 * (labels != BLANK).sum(-1, keepdim=True)  # the blank after the last label

        index = self.symbols.unsqueeze(1).expand(-1, log_probs.shape[1], -1)
        emitted = log_probs.clamp_min(IMPOSSIBLE).gather(-1, index)
        begins = torch.arange(num_states, device=x.device) < 2
        alpha = torch.where(begins, emitted[:, 0], IMPOSSIBLE)
        alphas = [alpha]
        for t in range(1, log_probs.shape[1]):
            one, two = (_shift(alpha, by) for by in (1, 2))
            moves = torch.stack([alpha, one, torch.where(self.skips, two, IMPOSSIBLE)])
            alpha = moves.logsumexp(0) + emitted[:, t]
            alphas.append(alpha)
        self.alphas = alphas
        ends = torch.cat([self.last, (self.last - 1).clamp_min(0)], -1)
        self.ends = alpha.gather(-1, ends)  # log p of the paths that end in the blank, in the label
        self.ends = torch.where(
            (self.last == 0) & (ends.new_tensor([0, 1]) == 1), IMPOSSIBLE, self.ends
        )
        self.log_normalizer = self.ends.logsumexp(-1)

    def sample(self, sample_shape: torch.Size) -> Tensor:
        """Draws paths, from the last frame to the first, and returns their symbols."""
        shape = (*sample_shape, len(self.symbols))
        ends = dist.Categorical(logits=self.ends, validate_args=False).sample(sample_shape)
        state = self.last.squeeze(-1) - ends
        states = [state]
        steps = torch.arange(3, device=state.device)
        skips = self.skips.expand(*shape, -1)
        for alpha in reversed(self.alphas[:-1]):
            sources = state.unsqueeze(-1) - steps
            allowed = sources >= 0
            allowed[..., 2] &= skips.gather(-1, state.unsqueeze(-1)).squeeze(-1)
            logits = alpha.expand(*shape, -1).gather(-1, sources.clamp_min(0))
            logits = logits.masked_fill(~allowed, -torch.inf)
            state = state - dist.Categorical(logits=logits, validate_args=False).sample()
            states.append(state)
        path = torch.stack(states[::-1], -1)
        return self.symbols.expand(*shape, -1).gather(-1, path)


def _shift(alpha: Tensor, by: int) -> Tensor:
    """Moves the values of the states `by` states on."""
    return torch.nn.functional.pad(alpha, (by, 0), value=IMPOSSIBLE)[..., : alpha.shape[-1]]


def _require_padded(x: Tensor) -> None:
    if not is_validation_enabled():
        return
    blank = x == BLANK
    wrong = (blank[:, :-1] & ~blank[:, 1:]).any(-1).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(
            f"x, (n, U), holds labels and then zeros, the blank, but in row {wrong[0]} (counted "
            f"from 0) a label comes after a zero: labels are counted from 1"
        )
