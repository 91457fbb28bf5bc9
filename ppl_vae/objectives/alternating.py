"""Several losses in a step, each of which moves its own parameters."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ppl_vae.objectives.base import Loss, Objective, checked
from ppl_vae.objectives.control import Controller
from ppl_vae.objectives.schedules import require_whole
from ppl_vae.pairs import Batch, Layout, Pair, PairError, Program
from ppl_vae.runtime import described


@dataclass(frozen=True)
class Turn:
    """One of the losses of an `Alternating` objective, and what it moves.

    Attributes:
        name: Its name: metrics.csv has its loss as `loss_` and this name.
        loss: Called as an objective is, with pair, layout, batch and beta; returns a `Loss`.
        moves: What gets gradients of this loss and is moved by them: modules, single parameters, and the pair's
            programs. `pair.model` stands for all parameters of the model, and `pair.guide` for those that the
            guide alone has, those of `pyro.param` too.
        every: The turn is taken in the first step, and then in every n-th.
        options: Settings of the optimizer for these parameters, such as `{"lr": 3e-4, "betas": (0.5, 0.999)}`.
        keeps: What it leaves as it is of what `moves` names: modules and single parameters, such as
            `[pair.model.discriminator]`.

    Raises:
        TypeError: A part is of another type.
        ValueError: The name has other characters than letters, digits and _, nothing is moved, or `every` is
            less than 1.

    Example:
        >>> Turn("wake", loss=print, moves=[nn.Linear(2, 1)], options={"lr": 3e-4}).every
        1
    """

    name: str
    loss: Callable[[Pair, Layout, Batch, float], Loss]
    moves: Sequence[nn.Module | Tensor | Program]
    every: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    keeps: Sequence[nn.Module | Tensor] = ()

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and re.fullmatch(r"\w+", self.name)):
            raise ValueError(
                f"Turn: name is a word of letters, digits and _, of which metrics.csv makes a column, got "
                f"{self.name!r}"
            )
        if not callable(self.loss):
            raise TypeError(
                f"{self}: loss must be a function of pair, layout, batch and beta that returns a Loss, got "
                f"{described(self.loss)}"
            )
        for name, parts in (("moves", self.moves), ("keeps", self.keeps)):
            if isinstance(parts, nn.Module | Tensor | str) or not isinstance(parts, Iterable):
                raise TypeError(
                    f"{self}: {name} must be a list of modules and parameters, got {described(parts)}: write "
                    f"{name}=[...]"
                )
            object.__setattr__(self, name, tuple(parts))
        for part in self.keeps:
            if not isinstance(part, nn.Module | Tensor):
                raise TypeError(f"{self} keeps {described(part)}: give modules and parameters")
        if not self.moves:
            raise ValueError(
                f"{self}: it moves nothing; give the modules or parameters that it trains as moves"
            )
        require_whole(str(self), "every", self.every)
        if self.every < 1:
            raise ValueError(
                f"{self}: every must be at least 1, got {self.every}: a turn with every=2 is taken in each "
                "second step"
            )
        if not isinstance(self.options, Mapping):
            raise TypeError(
                f"{self}: options must be a dict of settings of the optimizer, such as {{'lr': 3e-4}}, got "
                f"{described(self.options)}"
            )

    def __str__(self) -> str:
        return f"turn '{self.name}'"


@dataclass(frozen=True, kw_only=True)
class Alternating(Objective):
    """Several losses, which `fit` takes one after the other with each batch: turns.

    In each turn, `fit` computes the loss of the turn at the weights of now, its gradient by the parameters that
    the turn moves, and moves these alone. So a discriminator and a decoder may be trained against each other,
    or a model and its guide by losses of their own. A parameter may be moved in several turns.

    An optimizer of torch keeps its state for each parameter, and a group of parameters has settings of its own.
    So the groups that `Turn.options` makes of one optimizer are as many optimizers as there are turns: the
    numbers are those of separate ones, bit by bit. A schedule of the learning rate acts on all groups.
    Gradients are clipped in each turn.

    What differs from other objectives: a step of the training is one batch, with all of its turns; the
    logged `loss` is the sum of the losses of the turns in a step, beside the mean of each, `loss_NAME`; ELBO,
    rate and distortion are those that the first turn of a step returns. Steps are not captured: Pyro runs them.
    A controller of beta and `aggressive=True` read one loss, so they are refused.

    Raises:
        TypeError: A setting is of another type.
        ValueError: A setting is negative, infinite or NaN, beta is set by a controller, or there are no free
            bits.

    Example:
        An objective with turns is a frozen dataclass with a method `turns`. This one moves the guide by the
        loss of `ImportanceWeightedELBO`, and the model, in every second step, by that of the ELBO:

        >>> from dataclasses import dataclass
        >>> from ppl_vae import fit
        >>> from ppl_vae.guides import MeanField
        >>> from ppl_vae.models import ProbabilisticPCA
        >>> from ppl_vae.objectives import ImportanceWeightedELBO, MeanFieldELBO
        >>> @dataclass(frozen=True, kw_only=True)
        ... class InTurn(Alternating):
        ...     def turns(self, pair):
        ...         return [
        ...             Turn("guide", ImportanceWeightedELBO(num_particles=5), [pair.guide]),
        ...             Turn("model", MeanFieldELBO(), [pair.model], every=2, options={"lr": 1e-4}),
        ...         ]
        >>> pair = ProbabilisticPCA((3,), 1), MeanField((3,), 1)
        >>> fitted = fit(*pair, torch.randn(64, 3), objective=InTurn(), max_epochs=1, seed=0)
        >>> [name for name in fitted.history[0] if name.startswith("loss")]
        ['loss', 'loss_guide', 'loss_model']
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.beta, Controller):
            raise ValueError(
                f"{type(self).__name__}: {type(self.beta).__name__} sets beta by the rate and the distortion "
                "that one loss trades, and this objective has several losses: give a number or a schedule, "
                "such as LinearWarmup(epochs=10)"
            )

    @abstractmethod
    def turns(self, pair: Pair) -> Sequence[Turn]:
        """The turns of a step, in their order. `fit` asks for them once."""

    def __call__(self, pair: Pair, layout: Layout, batch: Batch, beta: float = 1.0) -> Loss:
        """All turns at once, at the same weights: each parameter has the gradient of the turns that move it."""
        with (
            torch.random.fork_rng()
        ):  # which runs the pair, and so declares what the turns may ask for
            leaves = pair.parameters(batch)
        name, turns = type(self).__name__, list(self.turns(pair))
        moved = moved_by(pair, leaves, turns, name)
        found = [
            checked(f"{turn} of {name}", turn.loss(pair, layout, batch, beta)) for turn in turns
        ]
        losses = [
            (loss.loss, [leaves[name] for name in moved[turn.name]])
            for turn, loss in zip(turns, found, strict=True)
        ]
        return replace(found[0], loss=routed(losses))


def require_unweighted(objective: Alternating) -> None:
    """Raises an error for an objective without a KL whose beta is not 1.

    Raises:
        ValueError: It is something else.
    """
    if objective.beta != 1:
        raise ValueError(
            f"{type(objective).__name__}: there is no KL to weight: leave beta at 1, got {objective.beta!r}"
        )


def moved_by(
    pair: Pair, leaves: Mapping[str, Tensor], turns: Sequence[Turn], objective: str
) -> dict[str, tuple[str, ...]]:
    """The names of the parameters that each turn moves, by the name of the turn.

    Args:
        pair: The pair.
        leaves: Its trainable parameters by name.
        turns: The turns.
        objective: The name of the objective, for the errors.

    Raises:
        TypeError: Something else is among the turns, or among what they move.
        PairError: There are no turns, or none in some steps, two have one name, or a turn moves what is not of
            the pair, or nothing that is trained.
    """
    if not turns:
        raise PairError(f"{objective}.turns(pair) has returned no turns: return a list of Turn")
    found: dict[str, tuple[str, ...]] = {}
    for turn in turns:
        if not isinstance(turn, Turn):
            raise TypeError(
                f"{objective}.turns(pair) must return a list of Turn, and has {described(turn)} in it"
            )
        if turn.name in found:
            raise PairError(
                f"{objective} has two turns with the name '{turn.name}': give each its own"
            )
        kept = {id(tensor) for part in turn.keeps for tensor in _tensors(part)}
        moved = {name for part in turn.moves for name in _named(pair, leaves, part, turn)}
        moved = {name for name in moved if id(leaves[name]) not in kept}
        if not moved:
            raise PairError(
                f"{turn} of {objective} moves nothing: what it names as moves has no trainable parameter. Call "
                "requires_grad_() of it, name other parts as moves, or give another objective, such as ELBO()"
            )
        found[turn.name] = tuple(name for name in leaves if name in moved)
    if all(turn.every > 1 for turn in turns):
        raise PairError(
            f"{objective} has no turn with every=1, so that some steps would do nothing: set every=1 for "
            "one of them"
        )
    return found


def _named(pair: Pair, leaves: Mapping[str, Tensor], part: object, turn: Turn) -> Iterator[str]:
    """The names of the parameters of one part of what a turn moves."""
    if part is pair.guide:
        yield from (name for name in leaves if not pair.is_of_model(name))
        return
    if part is pair.model:  # a module may have parameters of `pyro.param`, too
        yield from (name for name in leaves if pair.is_of_model(name))
        return
    if not isinstance(part, nn.Module | Tensor):
        raise TypeError(
            f"{turn} moves {described(part)}: give modules, parameters, pair.model or pair.guide"
        )
    names = {id(leaf): name for name, leaf in leaves.items()}
    for tensor in _tensors(part):
        if id(tensor) in names:
            yield names[id(tensor)]
        elif tensor.requires_grad:
            raise PairError(
                f"{turn} moves {described(part)}, which is no part of the pair: model and guide must be, hold "
                "or refer to what is trained, so that it is saved with them"
            )


def _tensors(part: nn.Module | Tensor) -> list[Tensor]:
    """The parameters of a part."""
    return [part] if isinstance(part, Tensor) else list(part.parameters())


def routed(losses: Sequence[tuple[Tensor, Sequence[Tensor]]]) -> Tensor:
    """One loss made of several, each of which reaches its own parameters alone.

    Its value is the sum of the losses, and its gradient by a parameter that of the losses that name it:

        d routed / d theta_g = d loss_g / d theta_g

    So losses of encoder and decoder can share one pass through both. The gradients are computed here, so that
    no gradient of a gradient can be taken.

    Args:
        losses: Each loss, a scalar, and the leaves that it trains. A leaf may be named by several.

    Returns:
        A scalar. If no leaf has a gradient, it needs none.

    Example:
        >>> a, b = torch.tensor(2.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)
        >>> total = routed([(a * b, [a]), ((a * b).square(), [b])])
        >>> total.backward()
        >>> total.item(), a.grad, b.grad  # a * b + (a * b)^2, b, 2 a^2 b
        (42.0, tensor(3.), tensor(24.))
    """
    value = torch.stack([loss for loss, _ in losses]).sum().detach()
    if not torch.is_grad_enabled():
        return value
    gradients: dict[int, tuple[Tensor, Tensor]] = {}
    for loss, leaves in losses:
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        if not wanted or not loss.requires_grad:
            continue
        each = torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True)
        for leaf, gradient in zip(wanted, each, strict=True):
            if gradient is not None:
                before = gradients.get(id(leaf))
                gradients[id(leaf)] = (leaf, gradient if before is None else before[1] + gradient)
    if not gradients:
        return value
    reached, found = zip(*gradients.values(), strict=True)
    total: Tensor = _Routed.apply(value, found, *reached)
    return total


class _Routed(torch.autograd.Function):
    """A value whose gradients are known."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: tuple[Tensor, ...], *leaves: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *[gradient * outer[0] for gradient in ctx.gradients]
