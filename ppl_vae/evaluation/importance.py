"""How good a pair is on given rows: ELBO, rate, distortion, and log p(x) by importance sampling."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ppl_vae.capture import ImportanceSampler, StaleRecordingError
from ppl_vae.checks import Session, opened
from ppl_vae.evaluation.conditions import Conditions
from ppl_vae.evaluation.counts import ValueCounts
from ppl_vae.evaluation.ladder import Ladder
from ppl_vae.evaluation.result import Evaluation
from ppl_vae.evaluation.undefined import Undefined
from ppl_vae.pairs import (
    Batch,
    DataLike,
    Elements,
    FiniteLatents,
    Layout,
    Pair,
    Program,
    as_args,
    covers_posterior,
    finite_latents,
    is_certain,
    is_posterior,
    notes_on_discrete,
    num_rows,
    sample_rows,
    stated_elements,
    summed_elements,
    trace_guide,
)
from ppl_vae.runtime import require_flags, require_samples
from ppl_vae.stats import Estimate, StreamingWeights

_logger = logging.getLogger(__name__)


def evaluate(
    model: Program,
    guide: Program,
    x: DataLike,
    *,
    num_samples: int = 1000,
    method: Literal["auto", "guide", "annealed"] = "auto",
    seed: int | None = None,
    progress: bool | None = None,
    capture: bool = True,
) -> Evaluation:
    """ELBO, rate, distortion and log p(x) of each row, from `num_samples` importance samples.

    With z_k ~ q(z | x) and w_k = p(x, z_k) / q(z_k | x), log p(x) is estimated by log 1/K sum_k w_k (Burda et
    al., arXiv:1509.00519), the ELBO by the mean of log w_k. Rows and samples are run in chunks of a
    bounded size, and the weights are reduced chunk by chunk, so memory does not grow with K. Modules are in
    evaluation mode during the call. Latents outside of the plate over rows are drawn from the guide and not
    weighted: log p(x) is then the log predictive density under the guide's posterior.

    Args:
        model: Pyro program of p(x, z).
        guide: Pyro program of q(z | x). If `fit` has trained exactly this pair, its `pyro.param`
            values are used.
        x: A tensor or array `(n, *event)`, a tuple of them, or an iterable of batches; all that
            `ppl_vae.pairs.Batches` takes.
        num_samples: K, the number of importance samples per row.
        method: "auto" finds better proposals for rows that the guide does not reach, from 100 samples on;
            `Evaluation.method` says which rows these are, and `docs/truth.md` how. Rows that are still out of
            reach are annealed if they are few; "annealed" anneals them however many they are, which takes about
            a second each, unless rows do not run without the others. "guide" draws all samples from the guide.
        seed: Seed for the draws; None draws from torch's global generator.
        progress: Whether to show a progress bar; None shows one on a terminal.
        capture: Record a chunk once and run it as a plain graph, with the same results, where that is valid
            and faster; False runs every chunk in Pyro. See `docs/capture.md`.

    Returns:
        An `Evaluation`.

    Raises:
        PairError: The programs fail on the rows, the rows are not in a plate, data are NaN or outside of
            the likelihood's support, or the guide ties the latents of different rows together.
        TypeError: `num_samples` is no whole number.
        ValueError: `num_samples` is not positive or beyond all reason, or `x` has no rows.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):  # the exact posterior
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> x = torch.tensor([0.0, 1.0, 2.0])
        >>> evaluate(model, guide, x, num_samples=10).log_likelihood.values
        tensor([-1.2655, -1.5155, -2.2655])
        >>> dist.Normal(0.0, 2**0.5).log_prob(x)
        tensor([-1.2655, -1.5155, -2.2655])
    """
    require_samples("num_samples", num_samples)
    require_flags(capture=capture)
    if method not in ("auto", "guide", "annealed"):
        raise ValueError(f"method must be 'auto', 'guide' or 'annealed', got {method!r}")
    generator = torch.get_rng_state()
    try:
        return _evaluate(model, guide, x, num_samples, method, seed, progress, capture)
    except StaleRecordingError as error:
        _logger.warning("capture is off, the evaluation starts again in Pyro: %s", error)
        torch.set_rng_state(generator)
        return _evaluate(model, guide, x, num_samples, method, seed, progress, False)


def _evaluate(
    model: Program,
    guide: Program,
    x: DataLike,
    num_samples: int,
    method: str,
    seed: int | None,
    progress: bool | None,
    capture: bool,
) -> Evaluation:
    ladder = None
    parts: list[dict[str, Tensor]] = []
    undefined = Undefined(model)
    with opened(model, guide, x, seed=seed, progress=progress) as session:
        finite = finite_latents(session.pair, session.layout, session.first)
        trust = _Trust.of(session.pair)
        _run_once(session)
        counts, conditions = ValueCounts(session), Conditions(session)
        rows, samples = session.chunk_sizes(num_samples * (1 if finite is None else finite.count))
        # An iterable may hold any number of rows: assume those of its first batch, at least.
        total = session.num_rows or num_rows(session.first)
        num_chunks = math.ceil(total / rows) * math.ceil(num_samples / samples)
        sampler = ImportanceSampler(session.pair, session.layouts, num_chunks, capture, samples)
        if method != "guide":
            ladder = Ladder(session, num_samples, rows * samples, method == "annealed")
        summed: dict[tuple[str, ...], FiniteLatents] = {}
        drawn: dict[str, None] = {}
        by_element = _ByElement(session.pair)
        certain = _CertainCodes(session.pair)
        for chunk in session.chunks(rows, "evaluate"):
            layout, finite = sampler.discrete(chunk)
            exact = by_element.rows(layout, chunk, num_samples) if finite is None else None
            if exact is None and finite is None and not trust.is_posterior:
                exact = certain.rows(layout, chunk)
            part = exact or _evaluate_rows(
                sampler, chunk, num_samples, samples, layout, finite, trust
            )
            if (
                session.layouts.expected(chunk) is not layout
            ):  # of another kind than rows of its shapes before
                layout, finite = sampler.discrete(chunk)
                part = _evaluate_rows(sampler, chunk, num_samples, samples, layout, finite, trust)
            if finite is not None:
                summed.setdefault(layout.discrete, finite)
            is_drawn = finite is None and exact is None and not trust.is_posterior
            drawn |= dict.fromkeys(layout.discrete if is_drawn else ())
            for name in undefined.add(layout, num_rows(chunk)):
                part[name] = torch.full_like(part[name], math.nan)
            parts.append(part)
            counts.add(chunk)
            conditions.add(chunk)
            if ladder is not None and not certain.names:
                ladder.look(chunk, layout, part)
        if ladder is not None:
            ladder.finish()
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    drawn_rows = joined.pop("drawn")
    notes, cautions = _describe(session, summed, drawn, drawn_rows, trust)
    notes = (*conditions.notes, *by_element.notes, *certain.notes, *notes)
    joined["rung"] = torch.zeros(len(drawn_rows))
    if ladder is not None:
        ladder.improve(joined)
        notes = (*notes, *ladder.notes)
    rate, distortion = joined["rate"], joined["distortion"]
    return Evaluation(
        elbo=Estimate(-(rate + distortion), missing=undefined.missing_bound),
        rate=Estimate(rate, missing=undefined.missing_bound),
        distortion=Estimate(distortion),
        log_likelihood=Estimate(
            joined["log_likelihood"], missing=undefined.missing or certain.missing
        ),
        log_likelihood_error=joined["error"],
        ess=joined["ess"],
        khat=joined["khat"],
        num_samples=num_samples,
        num_values=counts.num_values,
        counted=counts.counted,
        drawn=drawn_rows if bool(drawn_rows.any()) else None,
        rung=joined["rung"].long() if bool(joined["rung"].any()) else None,
        at_points=undefined.all_points,
        measure=undefined.measure,
        certain=bool(certain.names) and bool(joined["log_likelihood"].isnan().all()),
        notes=notes,
        cautions=(*undefined.cautions, *cautions),
    )


def _evaluate_rows(
    sampler: ImportanceSampler,
    batch: Batch,
    num_samples: int,
    chunk: int,
    layout: Layout,
    finite: FiniteLatents | None,
    trust: _Trust,
) -> dict[str, Tensor]:
    drawn = finite is None and bool(layout.discrete)
    if finite is not None:
        chunk = max(1, chunk // finite.count)
    exact = finite is not None and finite.alone
    asked, num_samples = num_samples, 1 if exact else num_samples
    weights = StreamingWeights(num_samples)
    rate: Any = 0.0
    distortion: Any = 0.0
    for done in range(0, num_samples, chunk):
        size = min(chunk, num_samples - done)
        found = sampler(batch, size) if finite is None else sampler.summed(batch, size, finite)
        weights.update(found.log_weights)
        rate = rate + found.rate
        distortion = distortion + found.distortion
    dtype = weights.log_mean_exp.dtype
    error, ess, khat = weights.monte_carlo_error, weights.ess, weights.khat
    if exact:  # nothing is drawn
        error, ess = torch.zeros_like(error), torch.full_like(ess, asked)
        khat = torch.full_like(khat, -math.inf)
    elif drawn and not trust.is_posterior:
        # K equal weights say nothing about values that the guide does not draw.
        khat = torch.where(khat == -math.inf, math.nan, khat)
    return {
        "rate": (rate / num_samples).to(dtype).cpu(),
        "distortion": (distortion / num_samples).to(dtype).cpu(),
        "log_likelihood": weights.log_mean_exp.cpu(),
        "error": error.cpu(),
        "ess": ess.cpu(),
        "khat": khat.cpu(),
        "drawn": torch.full((num_rows(batch),), drawn and not trust.covers),
    }


class _ByElement:
    """Rows of a discrete latent with many elements that are summed over one at a time; see `summed_elements`.

    Args:
        pair: The pair.
    """

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._found: dict[object, Elements | None] = {}
        self._summed: dict[str, None] = {}

    def rows(self, layout: Layout, batch: Batch, num_samples: int) -> dict[str, Tensor] | None:
        """What `_evaluate_rows` finds, exactly; None if that cannot be."""
        if not layout.discrete:
            return None
        if layout.signature not in self._found:
            self._found[layout.signature] = stated_elements(self._pair, layout, batch)
        elements = self._found[layout.signature]
        if elements is None:
            return None
        found = summed_elements(self._pair, layout, batch, elements)
        if found is None:
            return None
        self._summed[elements.site] = None
        log_p = found.log_weights[0].cpu()
        return {
            "rate": found.rate[0].cpu(),
            "distortion": found.distortion[0].cpu(),
            "log_likelihood": log_p,
            "error": torch.zeros_like(log_p),
            "ess": torch.full_like(log_p, num_samples),
            "khat": torch.full_like(log_p, -math.inf),
            "drawn": torch.zeros_like(log_p, dtype=torch.bool),
        }

    @property
    def notes(self) -> tuple[str, ...]:
        """Which latents were summed over."""
        if not self._summed:
            return ()
        names = _quoted(self._summed)
        return (
            f"latents {names} are summed over element by element, not drawn: log p(x) and the ELBO are exact",
        )


class _CertainCodes:
    """Rows of which the guide gives all mass to one value of each latent, as a quantizer does.

    Their ELBO is exact, and importance sampling would find nothing else, however many samples there are.

    Args:
        pair: The pair.

    Attributes:
        names: The latents of such rows so far.
    """

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._certain: dict[object, bool] = {}
        self.names: dict[str, None] = {}

    def rows(self, layout: Layout, batch: Batch) -> dict[str, Tensor] | None:
        """What `_evaluate_rows` finds, from one run of the pair; None if the guide draws something."""
        if not layout.discrete or layout.shared or set(layout.draws) != set(layout.discrete):
            return None
        if layout.signature not in self._certain:
            with torch.random.fork_rng():  # the draws that follow are those of the seed
                trace = trace_guide(self._pair.guide, *as_args(batch))
            self._certain[layout.signature] = all(
                is_certain(trace.nodes[name]) for name in layout.draws if name in trace.nodes
            )
        if not self._certain[layout.signature]:
            return None
        found = sample_rows(self._pair, layout, batch, 1)
        self.names |= dict.fromkeys(layout.draws)
        rate = (found.log_guide - found.log_prior)[0].double().cpu()
        unknown = torch.full_like(rate, math.nan)
        return {
            "rate": rate,
            "distortion": -found.log_likelihood[0].double().cpu(),
            **dict.fromkeys(("log_likelihood", "error", "ess", "khat"), unknown),
            "drawn": torch.zeros_like(rate, dtype=torch.bool),
        }

    @property
    def missing(self) -> str:
        """What to print in place of log p(x); empty if there are no such rows."""
        return "known only to be at least the ELBO" if self.names else ""

    @property
    def notes(self) -> tuple[str, ...]:
        """Why the ELBO is exact, and log p(x) is not known."""
        if not self.names:
            return ()
        return (
            f"the guide puts all of its mass on one value of {_quoted(self.names)}: ELBO, rate and distortion "
            "are exact, and importance sampling would see no other value, so that log p(x) is known only to be "
            "at least the ELBO",
        )


@dataclass(frozen=True)
class _Trust:
    """What is known of a guide that draws discrete latents.

    Attributes:
        is_posterior: It is the posterior: equal weights are as they should be.
        covers: It leaves out no value that the posterior has: k-hat says what it says of continuous latents.
    """

    is_posterior: bool
    covers: bool

    @classmethod
    def of(cls, pair: Pair) -> _Trust:
        """That of a pair."""
        return cls(is_posterior(pair.model, pair.guide), covers_posterior(pair.model, pair.guide))


def _run_once(session: Session) -> None:
    """Runs the pair on the first rows. The draws of a seed come after this run."""
    sample_rows(session.pair, session.layout, session.first, 1)
    if not session.layout.vectorizes:
        _logger.info(
            "the programs do not run with a dimension of samples to the left of the rows: samples are "
            "drawn one after the other, which is slower (reshape with z.shape[:-1] to avoid it)"
        )


def _describe(
    session: Session,
    summed: dict[tuple[str, ...], FiniteLatents],
    drawn: Collection[str],
    drawn_rows: Tensor,
    trust: _Trust,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """How to read the result, and reasons not to trust it, once all rows have been seen.

    Args:
        session: The opened pair.
        summed: Discrete latents that are summed over, and how.
        drawn: Discrete latents that are drawn.
        drawn_rows: Which rows have them from a guide that may leave some out, `(n,)`.
        trust: What is known of the guide.
    """
    notes: list[str] = []
    doubts: list[str] = []
    shared = dict.fromkeys(name for layout in session.layouts.known for name in layout.shared)
    if shared:
        notes.append(
            f"sites {_quoted(shared)} belong to all rows: they are drawn from the guide, and log p(x) is the "
            "log predictive density under it; the ELBO of a row leaves out their KL"
        )
    for latents, finite in summed.items():
        notes += notes_on_discrete(latents, finite)[0]
    if drawn:
        _, (doubt,) = notes_on_discrete(drawn, None, trust.covers)
        count, n = int(drawn_rows.sum()), len(drawn_rows)
        doubts.append(
            f"{doubt}, so that {count} of {n} rows count as unreliable" if count else doubt
        )
    findings = session.findings
    return (*notes, *findings.notes), (*findings.doubts, *doubts, *findings.biases)


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
