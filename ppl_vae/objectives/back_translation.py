"""Back-translation: wake-sleep whose sleep begins with real latents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import pyro.poutine as poutine
import torch
from torch import Tensor

from ppl_vae.objectives.alternating import Alternating, Turn, require_unweighted
from ppl_vae.objectives.base import Loss
from ppl_vae.objectives.real_latents import Latents, RealLatents, SetReal
from ppl_vae.objectives.schedules import require_bool
from ppl_vae.objectives.scored_draws import (
    density_of_rows,
    detached_draws,
    drawn_rows,
    elbo_of_rows,
    require_draws,
    require_elbo_rows,
    whole_guide,
)
from ppl_vae.pairs import (
    Batch,
    Layout,
    LikeliestValues,
    Pair,
    PairError,
    Trace,
    as_args,
    many_samples,
    num_rows,
    take_rows,
    tensors_of,
    trace_guide,
)

_OWNER = "BackTranslation.latents"
"""What holds the real latents, for messages."""


@dataclass(frozen=True, kw_only=True)
class BackTranslation(Alternating):
    r"""Back-translation: p(x | z) learns from rows that the guide translates, q(z | x) from latents that the
    model translates.

    For a latent of which real values are at hand, such as the German sentence behind an English one. They are
    not paired with the rows. In nats per row, with z' from `latents`,

        model = -E_q(z | x) log p(x | z) - log p(z')
        guide = -E_p(x' | z') log q(z' | x')

    and neither differentiates a draw ("Improving Neural Machine Translation Models with Monolingual Data",
    arXiv:1511.06709; "Unsupervised Machine Translation Using Monolingual Corpora Only", arXiv:1711.00043).
    The second term of the first trains the language model p(z) by maximum likelihood; nothing else learns from
    it.

    It is `WakeSleep` with real latents in place of those that p(z) draws. Against the ELBO with weight beta,

        E_q(z | x) [-log p(x | z) + beta (log q(z | x) - log p(z))],

    the gradient by p(x | z) is the same. The gradient by q lacks that of the ELBO,

        E_q(z | x) [(-log p(x | z) + beta (log q(z | x) - log p(z))) grad log q(z | x)],

    and with it log p(z); it is that of -log q(z' | x') in its place. So for every bijection between values of z
    and x the two translation losses, without -log p(z'), have their least value, 0, whatever p(z) says of it.

    Draws are made in evaluation mode, so without dropout, and are scored in training mode. The ELBO is logged
    beside the losses; it is not what they are after, so the last weights are kept.

    Attributes:
        latents: Real values of the latents, unpaired with the rows: a tensor `(m, *event)`, or a dict of them
            by site, or something with a method `draw(n)`, such as `ppl_vae.data.Buckets`. Each step draws as
            many as the batch has rows, with equal probability.
        greedy: Take the likeliest value of each draw, of a sentence word by word, in place of a draw. This is
            no expectation under q: the gradient by p(x | z) is then not that of the ELBO, and the ELBO that is
            logged is that of `elbo_rows` rows of each batch, by draws.
        elbo_rows: See `greedy`.
        learn_prior: Whether p(z) learns from the real latents, if it has parameters.

    Raises:
        PairError: The model sums latents out, or the guide draws what the model does not have, or the model
            observes something else than the tensors of the batch as they are, or the real values are not those
            of its latents.
        TypeError: A setting is of another type.
        ValueError: A setting is out of its range, or beta is not 1 or free_bits not 0: the losses have no KL.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from ppl_vae import fit
        >>> def model(x):
        ...     key = pyro.param("key", torch.randn(2, 2))
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Categorical(torch.tensor([0.8, 0.2])))
        ...         pyro.sample("x", dist.Categorical(logits=key[z]), obs=x)
        >>> def guide(x):
        ...     logits = pyro.param("logits", torch.zeros(2, 2))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Categorical(logits=logits[x]))
        >>> x, z = torch.tensor([0, 1, 1, 1]), torch.tensor([0, 0, 1])  # no z belongs to an x
        >>> found = fit(model, guide, x, objective=BackTranslation(z), max_epochs=1, seed=0)
        >>> [name for name in found.history[0] if name.startswith("loss")]
        ['loss', 'loss_model', 'loss_guide']
    """

    judged_by_elbo = False
    why_no_free_bits = ": back-translation has no KL; set free_bits=0"

    latents: Latents = field(kw_only=False)
    greedy: bool = False
    elbo_rows: int = 8
    learn_prior: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_unweighted(self)
        require_bool("BackTranslation", "greedy", self.greedy)
        require_elbo_rows(self, self.elbo_rows)
        if self.greedy and self.num_particles > 1:
            raise ValueError(
                "BackTranslation: with greedy=True all translations of a row are the same: leave "
                f"num_particles at 1, got {self.num_particles}"
            )
        require_bool("BackTranslation", "learn_prior", self.learn_prior)
        object.__setattr__(self, "latents", self._given)

    @property
    def _given(self) -> RealLatents:
        return RealLatents.of(_OWNER, self.latents)

    def turns(self, pair: Pair) -> Sequence[Turn]:
        """See `Alternating.turns`."""
        return [
            Turn("model", self._model, [pair.model]),
            Turn("guide", self._guide, whole_guide(pair)),
        ]

    def _model(self, pair: Pair, layout: Layout, batch: Batch, beta: float) -> Loss:
        """The model's turn: rows from what the guide makes of them, and the prior from real latents."""
        _require_x_alone(batch, layout)
        n, samples = num_rows(batch), self.num_particles if layout.vectorizes else 1
        each = [
            self._translated(pair, layout, batch, samples)
            for _ in range(self.num_particles // samples)
        ]
        rows = torch.cat([each_rows for each_rows, _, _ in each])
        loss = -rows.mean()
        if self.learn_prior:
            values, part = self._real(n, layout, batch)
            real_model = SetReal(values, _OWNER, layout.dim)(pair.model)
            seen = poutine.trace(real_model).get_trace(*as_args(part))
            real = density_of_rows(seen, layout.latents, layout, 1, num_rows(part))
            loss = loss - real.mean()
        if self.greedy:  # which is no draw
            return replace(elbo_of_rows(pair, layout, batch, self.elbo_rows), loss=loss)
        distortion = -rows.detach().mean()
        rate = torch.cat([each_rate for _, each_rate, _ in each]).mean()
        return Loss(loss, -(distortion + rate), rate, distortion, [traces for *_, traces in each])

    def _translated(
        self, pair: Pair, layout: Layout, batch: Batch, samples: int
    ) -> tuple[Tensor, Tensor, tuple[Trace, Trace]]:
        """log p(x | z) with its gradient and log q(z | x) - log p(z) at draws of the guide, `(samples, n)`.

        The likeliest values have no rate: it is 0 there, and a language model p(z) does not run.
        """
        n = num_rows(batch)
        with many_samples(layout, samples):
            with _quietly(pair), self._drawing():
                guide = trace_guide(pair.guide, *as_args(batch))
            replayed = poutine.replay(pair.model, trace=detached_draws(guide))
            model = poutine.trace(replayed).get_trace(*as_args(batch))
        layout.require(model, guide)
        rows = density_of_rows(model, layout.observed, layout, samples, n)
        rate = torch.zeros_like(rows)
        if not self.greedy:
            with _quietly(pair):
                rate = density_of_rows(guide, layout.guide_sites, layout, samples, n)
                rate -= density_of_rows(model, layout.latents, layout, samples, n)
        return rows, rate, (model, guide)

    def _guide(self, pair: Pair, layout: Layout, batch: Batch, beta: float) -> Loss:
        """The guide's turn: real latents from what the model makes of them."""
        _require_x_alone(batch, layout)
        values, part = self._real(num_rows(batch), layout, batch)
        n = num_rows(part)
        with _quietly(pair), self._drawing():
            made = poutine.uncondition(SetReal(values, _OWNER, layout.dim)(pair.model))
            dream = poutine.trace(made).get_trace(*as_args(part))
            drawn = drawn_rows(dream, layout, part, "BackTranslation")
        guide = poutine.trace(poutine.replay(pair.guide, trace=dream)).get_trace(*as_args(drawn))
        loss = -density_of_rows(guide, layout.guide_sites, layout, 1, n).mean()
        return replace(elbo_of_rows(pair, layout, batch, 0), loss=loss, traces=[(dream, guide)])

    def _real(self, n: int, layout: Layout, batch: Batch) -> tuple[dict[str, Tensor], Batch]:
        """Real latents, and as many rows, whose place they take."""
        found: dict[str, Tensor]
        _, found = self._given.drawn(n, layout, tensors_of(batch)[0].device)
        return found, take_rows(batch, slice(0, len(next(iter(found.values())))))

    def _drawing(self) -> Any:
        return LikeliestValues() if self.greedy else nullcontext()


def _require_x_alone(batch: Batch, layout: Layout) -> None:
    """Refuses what back-translation cannot have.

    Raises:
        PairError: Latents are summed out, or rows come with more than x.
    """
    require_draws(layout, "BackTranslation")
    if len(tensors_of(batch)) > 1:
        raise PairError(
            "BackTranslation runs the model on real latents in place of those of a batch, and what else "
            "belongs to the rows (their lengths, say) is not theirs: let x hold all of a row"
        )


@contextmanager
def _quietly(pair: Pair) -> Iterator[None]:
    """Without gradients, in evaluation mode."""
    with torch.no_grad(), pair.mode(training=False):
        yield
