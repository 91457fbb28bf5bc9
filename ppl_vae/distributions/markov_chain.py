"""Markov chains over finitely many states, as distributions over whole paths."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.runtime import InferDict
from torch import Tensor
from torch.distributions import constraints, register_kl

IMPOSSIBLE = -1e30
"""The log-probability of what cannot happen: finite, so that no gradient is NaN; its exp is 0."""


class MarkovChain(dist.TorchDistribution):
    """Paths z = (z_0, ..., z_{T-1}) with p(z) = p(z_0) prod_t p(z_t | z_{t-1}), each z_t in 0..K-1.

    Transitions may differ from step to step: the prior of a hidden Markov model is such a chain, and so is
    its posterior. The batch shape is `batch`, the event shape `(T,)`. Entropy, marginals, mode (Viterbi) and
    KL to another chain are exact, at a cost of T K^2.

    Args:
        initial_logits: Unnormalized log p(z_0), `(*batch, K)`.
        transition_logits: Unnormalized log p(z_t = j | z_{t-1} = i), `(*batch, T - 1, K, K)`, i before j.
        whole: Whether programs draw the path at one site, `z`, or at one site for each step, `z_0`, `z_1`, ...
            The distribution is the same. Guides of this library draw as they are told here.

    Raises:
        ValueError: The shapes do not fit together.

    Example:
        >>> stay = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log().expand(3, 2, 2)
        >>> chain = MarkovChain(torch.zeros(2), stay)
        >>> chain.event_shape, chain.log_prob(torch.tensor([0, 0, 0, 1])).exp()
        (torch.Size([4]), tensor(0.0405))
        >>> chain.marginals[1]
        tensor([0.5000, 0.5000])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "initial_logits": constraints.real_vector,
        "transition_logits": constraints.independent(constraints.real, 3),
    }
    has_enumerate_support = False

    def __init__(
        self,
        initial_logits: Tensor,
        transition_logits: Tensor,
        validate_args: bool | None = None,
        *,
        whole: bool = False,
    ) -> None:
        states = initial_logits.shape[-1]
        if transition_logits.dim() < 3 or transition_logits.shape[-2:] != (states, states):
            raise ValueError(
                f"MarkovChain needs transition_logits of shape (*batch, steps - 1, {states}, {states}) for "
                f"initial_logits of {states} states, got {tuple(transition_logits.shape)}"
            )
        batch = torch.broadcast_shapes(initial_logits.shape[:-1], transition_logits.shape[:-3])
        initial = initial_logits.clamp_min(IMPOSSIBLE).log_softmax(-1)
        transition = transition_logits.clamp_min(IMPOSSIBLE).log_softmax(-1)
        self.initial_logits = initial.expand(*batch, -1)
        self.transition_logits = transition.expand(*batch, -1, -1, -1)
        self.whole = whole
        steps = transition.shape[-3] + 1
        super().__init__(batch, torch.Size([steps]), validate_args=validate_args)

    @property
    def states(self) -> int:
        """K."""
        return int(self.initial_logits.shape[-1])

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> Any:
        return constraints.independent(constraints.integer_interval(0, self.states - 1), 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> MarkovChain:
        batch = torch.Size(batch_shape)
        new: MarkovChain = self._get_checked_instance(MarkovChain, _instance)  # type: ignore[no-untyped-call]
        new.initial_logits = self.initial_logits.expand(*batch, -1)
        new.transition_logits = self.transition_logits.expand(*batch, -1, -1, -1)
        new.whole = self.whole
        super(MarkovChain, new).__init__(batch, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def step(self, t: int, previous: Tensor | None = None) -> dist.Categorical:
        """p(z_t | z_{t-1} = previous); for t = 0 p(z_0).

        Args:
            t: Which step.
            previous: States of step t - 1, of a shape that broadcasts with the batch shape (samples and
                enumerated values are in dimensions to the left).
        """
        if t == 0 or previous is None:
            return dist.Categorical(logits=self.initial_logits)
        return dist.Categorical(logits=self._after(t, previous))

    def _after(self, t: int, previous: Tensor) -> Tensor:
        """log p(z_t | z_{t-1} = previous), a row for each of the states `previous`."""
        logits = self.transition_logits[..., t - 1, :, :]
        batch = torch.broadcast_shapes(self.batch_shape, previous.shape)
        index = previous[..., None, None].expand(*batch, 1, self.states)
        return logits.expand(*batch, -1, -1).gather(-2, index).squeeze(-2)

    @torch.no_grad()
    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 (torch's signature)
        path = [self.step(0).sample(torch.Size(sample_shape))]
        for t in range(1, self.event_shape[0]):
            # What Categorical does; to make one takes longer than its draw.
            logits = self._after(t, path[-1])
            probs = (logits - logits.logsumexp(-1, keepdim=True)).softmax(-1)
            drawn = torch.multinomial(probs.reshape(-1, self.states), 1, replacement=True)
            path.append(drawn.reshape(logits.shape[:-1]))
        return torch.stack(path, -1)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        value = value.long()
        batch = torch.broadcast_shapes(self.batch_shape, value.shape[:-1])
        value = value.expand(*batch, -1)
        first = self.initial_logits.expand(*batch, -1).gather(-1, value[..., :1]).squeeze(-1)
        pairs = self.transition_logits.flatten(-2).expand(*batch, -1, -1)
        index = value[..., :-1] * self.states + value[..., 1:]
        log_p: Tensor = first + pairs.gather(-1, index.unsqueeze(-1)).squeeze(-1).sum(-1)
        return log_p

    @property
    def marginals(self) -> Tensor:
        """p(z_t = k), `(*batch, T, K)`."""
        transition = self.transition_logits.exp().unbind(-3)
        found = [self.initial_logits.exp()]
        for step in transition:
            found.append((found[-1].unsqueeze(-2) @ step).squeeze(-2))
        return torch.stack(found, -2)

    @property
    def pair_marginals(self) -> Tensor:
        """p(z_{t-1} = i, z_t = j) for t = 1, ..., T - 1: `(*batch, T - 1, K, K)`."""
        return self.marginals[..., :-1, :].unsqueeze(-1) * self.transition_logits.exp()

    @property
    def mode(self) -> Tensor:
        """The most probable path, by the Viterbi algorithm: `(*batch, T)`."""
        best, pointers = self.initial_logits, []
        for step in self.transition_logits.unbind(-3):
            best, pointer = (best.unsqueeze(-1) + step).max(-2)
            pointers.append(pointer)
        path = [best.argmax(-1)]
        for pointer in reversed(pointers):
            path.append(pointer.gather(-1, path[-1].unsqueeze(-1)).squeeze(-1))
        return torch.stack(path[::-1], -1)

    def entropy(self) -> Tensor:
        """The entropy, -E log p(z), of the batch shape, in nats."""
        first = -(self.initial_logits.exp() * self.initial_logits).sum(-1)
        later = -(self.pair_marginals * self.transition_logits).sum((-3, -2, -1))
        return first + later


def sample_steps(name: str, chain: MarkovChain, infer: InferDict | None = None) -> list[Tensor]:
    """Samples a chain as one Pyro site per step, `name_0`, `name_1`, ...: the sites of a hidden Markov model.

    Call it inside the plate over rows.

    Args:
        name: What the sites' names begin with.
        chain: Its batch shape is that of the plate.
        infer: For every site, for instance `{"enumerate": "parallel"}`.
    """
    path: list[Tensor] = []
    for t in pyro.markov(range(chain.event_shape[0])):
        p = chain.step(t, path[-1] if path else None)
        path.append(pyro.sample(f"{name}_{t}", p, infer=infer))
    return path


def _kl_chains(p: MarkovChain, q: MarkovChain) -> Tensor:
    """KL of the first states plus, for every step, that of the transitions under p's marginals."""
    first = (p.initial_logits.exp() * (p.initial_logits - q.initial_logits)).sum(-1)
    ratio = p.transition_logits - q.transition_logits
    return first + (p.pair_marginals * ratio).sum((-3, -2, -1))


register_kl(MarkovChain, MarkovChain)(_kl_chains)
