"""The E and M steps of `fit_em`: in closed form, by enumeration, by draws, by a guide.

All four have the same two methods. `expect(batches)` finds q for every row, keeps what the M step needs of
it, and returns the mean of log p(x) (or of its bound) at the current parameters; `maximize()` changes the
parameters with q held fixed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import pyro
import pyro.poutine as poutine
import torch
from pyro.ops.contract import contract_tensor_tree
from pyro.ops.rings import MapRing
from torch import Tensor
from torch.optim import Optimizer

from ppl_vae.objectives import Resolved
from ppl_vae.pairs import (
    SAMPLES_PLATE,
    Batch,
    Layout,
    Layouts,
    Pair,
    PairError,
    Substitute,
    Trace,
    as_args,
    factor_of,
    find_rows,
    hook_of,
    inner_scale,
    latent_sites,
    num_rows,
    require_whole_row,
    row_log_prob,
    sample_sites,
    sites_of_rows,
    sum_to_rows,
)
from ppl_vae.runs import restore_optimizer
from ppl_vae.runtime import described, require_count, require_number

Statistics = dict[str, Tensor]


class ClosedFormModel(Protocol):
    """A model whose EM step is closed."""

    def expected_statistics(self, *x: Tensor, hard: bool = False) -> Statistics:
        """Sufficient statistics under p(z | x), summed over rows, with "log_evidence" and "num_rows"."""

    def maximize(self, statistics: Statistics) -> None:
        """Sets the parameters to the maximizer, given the statistics."""


def closed_form(model: Any) -> ClosedFormModel | None:
    """The model, if its EM step is closed."""
    own = all(hook_of(model, m) for m in ("expected_statistics", "maximize"))
    return cast(ClosedFormModel, model) if own else None


@dataclass(frozen=True)
class GradientSteps:
    """A partial M step: a few gradient steps on E_q[log p(x, z)], with q held fixed (generalized EM).

    Attributes:
        steps: Gradient steps per M step, each over all rows.
        learning_rate: Step size of the optimizer.
        optimizer: Function of a list of tensors and `lr` that returns an optimizer, whose state is kept through
            all iterations.
    """

    steps: int = 5
    learning_rate: float = 0.01
    optimizer: Callable[..., Optimizer] = torch.optim.Adam

    def __post_init__(self) -> None:
        require_count("GradientSteps.steps", self.steps)
        require_number("GradientSteps.learning_rate", self.learning_rate)
        if not callable(self.optimizer):
            raise TypeError(
                "GradientSteps.optimizer must be a function that makes an optimizer, such as torch.optim.Adam, "
                f"got {described(self.optimizer)}"
            )
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise ValueError(
                f"GradientSteps.learning_rate must be positive, got {self.learning_rate}"
            )

    def make(self, parameters: Iterable[Tensor]) -> Optimizer:
        """The optimizer of the parameters."""
        return self.optimizer(list(parameters), lr=self.learning_rate)


class Steps(ABC):
    """E and M step of one kind.

    Attributes:
        passes: How often the density of every row has been evaluated.
        gradient_evaluations: How often its gradient has.
        optimizers: What takes the gradient steps, if there are any.
    """

    def __init__(self, *optimizers: Optimizer) -> None:
        self.passes = 0.0
        self.gradient_evaluations = 0.0
        self.optimizers = optimizers

    @abstractmethod
    def expect(self, batches: Iterable[Batch]) -> float:
        """E step: log p(x), or its bound with this q, at the current parameters, nats per row."""

    @abstractmethod
    def maximize(self) -> None:
        """M step."""

    def state(self) -> dict[str, Any]:
        """What differs from iteration to iteration before an E step, besides the pair; no copies."""
        return {
            "passes": self.passes,
            "gradient_evaluations": self.gradient_evaluations,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state` gave."""
        self.passes = state["passes"]
        self.gradient_evaluations = state["gradient_evaluations"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            restore_optimizer(optimizer, saved)

    def facts(self) -> dict[str, Any]:
        """What the steps are, by name, for a resumed call to be compared with."""
        return {"steps": type(self).__name__}


class ClosedForm(Steps):
    """Both steps by the model's own closed forms; the statistics of batches add up."""

    def __init__(self, model: ClosedFormModel, hard: bool) -> None:
        super().__init__()
        self.model, self.hard = model, hard
        self.statistics: Statistics = {}

    def expect(self, batches: Iterable[Batch]) -> float:
        total: Statistics = {}
        for batch in batches:
            found = self.model.expected_statistics(*as_args(batch), hard=self.hard)
            total = {k: total[k] + v for k, v in found.items()} if total else found
        self.statistics = total
        self.passes += 1
        return float(total["log_evidence"] / total["num_rows"])

    def maximize(self) -> None:
        self.model.maximize(self.statistics)


class WithGradients(Steps):
    """Steps of which some climb a gradient."""

    def __init__(self, pair: Pair, m_step: GradientSteps, *optimizers: Optimizer) -> None:
        super().__init__(*optimizers)
        self.pair, self.m_step = pair, m_step

    def facts(self) -> dict[str, Any]:
        facts = {**super().facts(), "GradientSteps.steps": self.m_step.steps}
        for optimizer in self.optimizers:  # all are made in the same way
            kind = type(optimizer).__name__
            facts["optimizer"] = kind
            facts[kind] = {name: str(value) for name, value in optimizer.defaults.items()}
        return facts


class ByGradient(WithGradients):
    """The M step by gradient, on E_q[log p(x, z)] with the q that `infer` found for each batch."""

    def __init__(self, pair: Pair, m_step: GradientSteps, batch: Batch) -> None:
        self.optimizer = m_step.make(pair.parameters(batch).values())
        super().__init__(pair, m_step, self.optimizer)
        self.kept: list[tuple[Batch, Any]] = []

    @abstractmethod
    def infer(self, batch: Batch) -> tuple[Any, Tensor]:
        """q of a batch, in a form that the subclass chooses, and the sum of log p(x)."""

    @abstractmethod
    def expected_log_joint(self, batch: Batch, q: Any, share: float) -> Tensor:
        """E_q[log p(x, z)], summed over rows, differentiable.

        Args:
            batch: The rows.
            q: What `infer` found for them.
            share: The batch's share of all rows: the weight of terms that belong to no row (a penalty on the
                parameters), which count once in all.
        """

    def expect(self, batches: Iterable[Batch]) -> float:
        self.kept = []
        total, rows = 0.0, 0
        for batch in batches:
            q, log_evidence = self.infer(batch)
            self.kept.append((batch, q))
            total += float(log_evidence.detach())
            rows += num_rows(batch)
        self.passes += 1
        return total / rows

    def maximize(self) -> None:
        n = sum(num_rows(batch) for batch, _ in self.kept)
        for _ in range(self.m_step.steps):
            self.optimizer.zero_grad()
            for batch, q in self.kept:
                (-self.expected_log_joint(batch, q, num_rows(batch) / n) / n).backward()
            self.optimizer.step()
            self.passes += 1
            self.gradient_evaluations += 1


class Enumeration(ByGradient):
    """q = p(z | x) of latents that the model marks for enumeration, with any dependencies.

    The derivative of log p(x) by the log density of a site, at given values, is the posterior probability
    of these values. So one backward pass through Pyro's elimination of the latents gives every marginal that
    the expected log p(x, z) needs; with the maximum in place of the sum, it gives the mode.
    """

    def __init__(self, pair: Pair, m_step: GradientSteps, batch: Batch, hard: bool) -> None:
        super().__init__(pair, m_step, batch)
        self.layouts = Layouts(pair)
        self.ring = MapRing() if hard else None

    def infer(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        with torch.no_grad():
            trace, layout = self._trace(batch)
        terms: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
        leaves: dict[str, Tensor] = {}
        in_rows = {*layout.observed, *layout.enumerated}
        for name, log_prob in self._log_probs(trace, of_data=False).items():
            if name not in in_rows:
                continue
            require_whole_row(name, trace.nodes[name], layout)
            leaf: Any = log_prob.detach().requires_grad_()
            leaf._pyro_dims = cast(Any, log_prob)._pyro_dims
            leaves[name] = leaf
            frames = [f for f in trace.nodes[name]["cond_indep_stack"] if f.vectorized]
            ordinal = frozenset(trace.plate_to_symbol[f.name] for f in frames)
            terms.setdefault(ordinal, []).append(leaf)
        plates = set(trace.plate_to_symbol.values())
        dims = {d for ts in terms.values() for t in ts for d in cast(Any, t)._pyro_dims} - plates
        with torch.enable_grad():
            contracted = contract_tensor_tree(terms, dims, ring=self.ring)
            log_evidence = torch.stack([t.sum() for ts in contracted.values() for t in ts]).sum()
            weights = torch.autograd.grad(log_evidence, list(leaves.values()))
        return dict(zip(leaves, weights, strict=True)), log_evidence.detach()

    def expected_log_joint(self, batch: Batch, q: dict[str, Tensor], share: float) -> Tensor:
        terms = []
        trace, layout = self._trace(batch)
        for name, log_prob in self._log_probs(trace, of_data=True).items():
            if name not in q:
                terms.append(share * inner_scale(trace.nodes[name], layout) * log_prob.sum())
                continue
            # A value of probability 0 adds nothing, even where its log density is -inf.
            terms.append((q[name] * log_prob.masked_fill(q[name] == 0, 0.0)).sum())
        return torch.stack(terms).sum()

    def _trace(self, batch: Batch) -> tuple[Trace, Layout]:
        def work(layout: Layout) -> tuple[Trace, Layout]:
            model = poutine.enum(self.pair.model, first_available_dim=-layout.nesting - 2)
            trace = poutine.trace(model).get_trace(*as_args(batch))
            layout.require(trace, poutine.trace(self.pair.guide).get_trace(*as_args(batch)))
            trace.compute_log_prob()
            trace.pack_tensors()
            return trace, layout

        return self.layouts.run(batch, work)

    def _log_probs(self, trace: Trace, of_data: bool) -> dict[str, Tensor]:
        """The log density of each site; of masked latents only where they are summed out (see `factor_of`)."""
        summed = self.ring is None and not of_data
        return {
            name: factor_of(site, summed and not site["is_observed"])
            for name, site in sample_sites(trace).items()
        }


class Draws(ByGradient):
    """q by draws from the model's `posterior(x)`, held fixed during the M step (Monte Carlo EM)."""

    def __init__(
        self, pair: Pair, m_step: GradientSteps, batch: Batch, num_samples: int = 16
    ) -> None:
        super().__init__(pair, m_step, batch)
        self.num_samples = num_samples
        trace = poutine.trace(pair.model).get_trace(*as_args(batch))
        self.in_rows = {*latent_sites(trace), *sites_of_rows(pair.model, batch, trace)}
        self.site, *others = latent_sites(trace)
        if others:
            raise PairError(
                f"posterior(x) is one distribution, but the model has latents "
                f"{', '.join(map(repr, [self.site, *others]))}: give fit_em a guide"
            )
        frames = [f for s in sample_sites(trace).values() for f in s["cond_indep_stack"]]
        rows = find_rows(pair.model, batch, trace)
        self.layout = Layout(
            plate=rows.name,
            dim=rows.dim,
            latents=(self.site,),
            shared=(),
            enumerated=(),
            guide_sites=(),
            draws=(),
            points=(),
            observed=tuple(self.in_rows - {self.site}),
            nesting=-min(f.dim for f in frames if f.vectorized),
            vectorizes=True,
        )

    def infer(self, batch: Batch) -> tuple[Tensor, Tensor]:
        model: Any = self.pair.model
        with torch.no_grad():
            draws = model.posterior(*as_args(batch)).sample((self.num_samples,))
            return draws, model.log_evidence(*as_args(batch)).sum()

    def expected_log_joint(self, batch: Batch, q: Tensor, share: float) -> Tensor:
        model = Substitute({self.site: q})(self.pair.model)
        layout, k = self.layout, self.num_samples
        with pyro.plate(SAMPLES_PLATE, k, dim=-layout.nesting - 1):
            trace = poutine.trace(model).get_trace(*as_args(batch))
        terms = []
        for name, site in sample_sites(trace).items():
            log_prob = row_log_prob(site, layout)
            if name in self.in_rows:
                terms.append(sum_to_rows(log_prob, layout, k, num_rows(batch)).sum())
            else:
                terms.append(share * log_prob.sum())
        return torch.stack(terms).sum() / k


class ByGuide(WithGradients):
    """q by a guide: the E step moves its parameters to raise the bound, the M step the model's.

    SVI moves both at once. The E step of a guide without parameters (`Exact`) only evaluates it.
    """

    def __init__(
        self,
        pair: Pair,
        objective: Resolved,
        m_step: GradientSteps,
        batch: Batch,
    ) -> None:
        with poutine.trace(param_only=True) as capture, torch.no_grad():
            poutine.trace(pair.model).get_trace(*as_args(batch))
        of_model = {f"param.{name}" for name in capture.trace.nodes}
        named = pair.parameters(batch)
        model = {k: v for k, v in named.items() if k in of_model or k.startswith("model")}
        guide = {k: v for k, v in named.items() if k not in model}
        self.leaves = list(named.values())
        self.model_optimizer = m_step.make(model.values()) if model else None
        self.guide_optimizer = m_step.make(guide.values()) if guide else None
        both = (self.model_optimizer, self.guide_optimizer)
        super().__init__(pair, m_step, *(each for each in both if each is not None))
        self.layouts, self.objective = Layouts(pair), objective
        self.batches: list[Batch] = []

    def expect(self, batches: Iterable[Batch]) -> float:
        self.batches = list(batches)
        if self.guide_optimizer is not None:
            self._improve(self.guide_optimizer)
        with torch.no_grad():
            total = sum(float(self._loss(b).elbo) * num_rows(b) for b in self.batches)
        self.passes += 1
        return total / sum(map(num_rows, self.batches))

    def maximize(self) -> None:
        if self.model_optimizer is not None:
            self._improve(self.model_optimizer)

    def _improve(self, optimizer: Optimizer) -> None:
        n = sum(map(num_rows, self.batches))
        for _ in range(self.m_step.steps):
            for leaf in self.leaves:
                leaf.grad = None
            for batch in self.batches:
                (self._loss(batch).loss * (num_rows(batch) / n)).backward()
            optimizer.step()
            self.passes += 1
            self.gradient_evaluations += 1

    def _loss(self, batch: Batch) -> Any:
        return self.objective.loss(self.layouts, batch)
