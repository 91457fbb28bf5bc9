"""What a guide makes of a row, as numbers without noise; with gradients, for a classifier that reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.func import functional_call

from ppl_vae.objectives import marked_sites
from ppl_vae.pairs import (
    Batch,
    Layout,
    Pair,
    PairError,
    Site,
    as_args,
    center,
    innermost,
    is_categorical,
    is_delta,
    num_rows,
    rows_first,
    trace_guide,
)
from ppl_vae.runtime import preserve_random_state
from ppl_vae.tasks.observed import expectation

FLOW_DRAWS = 16
"""Draws that are averaged where a distribution states no mean; always of the same noise."""


class GuideFeatures(nn.Module):
    """A copy of a guide's weights, and what the guide makes of rows with them: a number for each latent number.

    The guide runs with each latent at its mean, and so the latents that depend on it. Of a latent with
    categories these are its probabilities; of codes of a quantizer the vectors of the encoder, before they are
    codes. The guide's own weights stay as they are, whatever happens to the copies, in training mode too.

    The programs run with other tensors in the place of their parameters, so that functions with `pyro.param`
    have such copies as modules do.

    Args:
        pair: The pair, in which the programs have run, outside of its scope.
        layout: The layout of its batches.
    """

    def __init__(self, pair: Pair, layout: Layout) -> None:
        super().__init__()
        # In tuples: as attributes they would be registered, and trained.
        self._pair, self._layout = (pair,), layout
        # Found once, because that takes as long as a step.
        roots = tuple(Pair(pair.guide, pair.guide).modules().values())
        every_root = pair.modules().values()
        self._every_module = tuple(
            {id(m): m for root in every_root for m in root.modules()}.values()
        )
        self._of_guide = frozenset(id(m) for root in roots for m in root.modules())
        holder = _Holder(roots)
        self._holder = (holder,)
        named = dict(holder.named_parameters())
        learned = {
            name: value for name, value in pair.store["params"].items() if value.is_floating_point()
        }
        self._names, self._stored = tuple(named), tuple(learned)
        self._buffer_names = tuple(name for name, _ in holder.named_buffers())
        every = (*named.values(), *learned.values())
        self.weights = nn.ParameterList(
            nn.Parameter(value.detach().clone(), requires_grad=value.requires_grad)
            for value in every
        )
        for i, (_, value) in enumerate(holder.named_buffers()):
            self.register_buffer(f"buffer_{i}", value.detach().clone())

    def forward(self, batch: Batch) -> Tensor:
        """The numbers of each row, `(n, dimensions)`.

        Raises:
            PairError: The guide has other sites for these rows than for the first ones.
        """
        with self._modes():
            return self._with_copies(lambda: _at_means(self._pair[0].guide, batch, self._layout))

    @contextmanager
    def _modes(self) -> Iterator[None]:
        """The guide is in this module's mode; the model, with a quantizer that would learn, never trains."""
        before = [module.training for module in self._every_module]
        for module in self._every_module:
            module.training = self.training and id(module) in self._of_guide
        try:
            yield
        finally:
            for module, was_training in zip(self._every_module, before, strict=True):
                module.training = was_training

    def _with_copies(self, run: Callable[[], Tensor]) -> Tensor:
        """What a function returns while programs see the copies."""
        modules = dict(zip(self._names, self.weights, strict=False))
        modules |= {n: getattr(self, f"buffer_{i}") for i, n in enumerate(self._buffer_names)}
        stored = dict(zip(self._stored, [*self.weights][len(self._names) :], strict=True))
        pair = self._pair[0]
        constraints = {name: pair.store["constraints"][name] for name in stored}
        store: Any = {"params": stored, "constraints": constraints}

        def scoped() -> Tensor:
            with pyro.get_param_store().scope(store), pair.subsampling.watched():
                return run()

        found: Tensor = functional_call(self._holder[0], modules, (scoped,))
        return found


class _Holder(nn.Module):
    """The modules of a program as one, so that all of their tensors can be replaced at once."""

    def __init__(self, roots: tuple[nn.Module, ...]) -> None:
        super().__init__()
        for i, root in enumerate(roots):
            self.add_module(f"part_{i}", root)

    def forward(self, run: Callable[[], Tensor]) -> Tensor:
        return run()


class _AtMeans(Messenger):
    """Gives latents the mean of their distribution, with its gradient, where a program would draw them."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["done"] or site_is_subsample(msg) or is_delta(msg):
            return
        value = _middle(msg)
        if value is not None:
            msg["value"], msg["done"] = value, True


def _middle(site: Site) -> Tensor | None:
    """The mean of a site's distribution; of categories the most probable. None leaves it to a draw."""
    fn = site["fn"]
    if is_categorical(site):
        shape = fn.batch_shape + fn.event_shape
        most: Tensor = innermost(fn).logits.argmax(-1)
        return most.expand(shape)
    if fn.has_enumerate_support:
        return None
    try:
        mean: Tensor = center(fn)
    except (NotImplementedError, AttributeError):
        if not fn.has_rsample:
            return None
        with preserve_random_state():
            torch.manual_seed(0)
            drawn: Tensor = fn.rsample((FLOW_DRAWS,))
        return drawn.mean(0)
    return mean.expand(fn.batch_shape + fn.event_shape)


def _at_means(guide: Any, batch: Batch, layout: Layout) -> Tensor:
    """What a guide makes of rows, its latents at their means: `(n, dimensions)`."""
    with _AtMeans():
        trace = trace_guide(guide, *as_args(batch))
    n, vectors = num_rows(batch), marked_sites(trace)
    columns = []
    for name in layout.latents:
        site = trace.nodes.get(vectors.get(name, name))
        if site is None:
            raise PairError(f"the guide has no site '{vectors.get(name, name)}' for these rows")
        if is_categorical(site):
            value = expectation(name, site, layout, 1, n)
        else:
            value = rows_first(site, layout, 1, n)
        columns.append(value[0].reshape(n, -1))
    found = torch.cat([c if c.is_floating_point() else c.float() for c in columns], 1)
    return found.to(torch.promote_types(found.dtype, torch.float32))
