"""The bidirectional Monte Carlo sandwich: log p(x) of simulated rows, bounded from both sides."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from torch import Tensor

from ppl_vae.checks import PairWarning, opened
from ppl_vae.distributions import Sentences
from ppl_vae.evaluation.chains import AnnealingSchedule, Chunk, in_chunks
from ppl_vae.evaluation.conditions import Conditions
from ppl_vae.evaluation.path import PriorGuide
from ppl_vae.pairs import (
    Batch,
    DataLike,
    Layout,
    Pair,
    PairError,
    Program,
    RowDensities,
    Site,
    Trace,
    as_args,
    first_line,
    innermost,
    require_no_points,
    require_proper,
    sample_sites,
    take_rows,
    tensors_of,
    unscaled,
    with_tensors,
)
from ppl_vae.runtime import preserve_random_state
from ppl_vae.stats import Estimate, RowResult, StreamingWeights, not_finite


@dataclass(frozen=True)
class Sandwich(RowResult):
    """Result of `bidirectional_monte_carlo` on the rows that it simulated, in nats.

    Attributes:
        lower: A stochastic lower bound of each row's log p(x): E[lower] <= log p(x).
        upper: A stochastic upper bound: E[upper] >= log p(x).
        lower_error: Monte-Carlo standard error of each lower bound (delta method), `(n,)`.
        upper_error: The same for each upper bound. Its chains share their start, so it is too small where
            chains hardly move.
        acceptance: Mean acceptance of each row's transitions in both directions, `(n,)`; NaN with one
            temperature, where there are none.
        data: The simulated rows, as arguments for the programs.
        num_chains: Chains per row and direction.
        num_steps: Number of temperatures.
        num_leapfrog: Leapfrog steps between two temperatures.
        from_prior: Whether the path starts at the prior rather than at the guide.
    """

    lower: Estimate
    upper: Estimate
    lower_error: Tensor
    upper_error: Tensor
    acceptance: Tensor
    data: Batch
    num_chains: int
    num_steps: int
    num_leapfrog: int
    from_prior: bool

    derived: ClassVar = ("gap",)
    hidden: ClassVar = ("data",)

    @property
    def gap(self) -> Estimate:
        """upper - lower of each row; in expectation, at least as large as the error of either bound."""
        return Estimate(self.upper.values - self.lower.values)

    def meets(self, within: float = 0.1) -> bool:
        """Whether the bounds are, beyond chance, at most `within` nats apart on average, and do not cross.

        That is, mean gap + 2 standard errors <= `within`. Always false for a single row.
        """
        return self.gap.mean + 2 * self.gap.standard_error <= within and not self.cross

    @property
    def cross(self) -> bool:
        """Whether the upper bound is below the lower one: mean gap + 2 standard errors < 0, beyond rounding.

        In expectation, no bounds cross. By chance, one sandwich in 40 does, if its true gap is 0.
        """
        gap, size = self.gap, self.lower.values
        rounding = 64 * torch.finfo(size.dtype).eps * (1 + float(size.abs().mean()))
        return gap.mean + 2 * gap.standard_error < -rounding

    def doubts(self) -> Iterator[str]:
        """Reasons not to trust the bounds, or why they say little; one sentence each."""
        gap = self.gap
        wrong = tuple(not_finite("a bound", gap))
        yield from wrong
        if wrong:
            return
        if self.cross:
            errors = -gap.mean / gap.standard_error
            rare = "more than chance explains" if errors > 4 else f"{errors:.1f} standard errors"
            yield (
                f"the bounds cross by {-gap.mean:.3f} nats, {rare}: the programs do not draw from the "
                f"distributions that they score{'' if errors > 4 else ', or it is rare chance; use more rows'}"
            )
        elif self.num_rows > 1 and not self.meets(1.0):
            by, more = f"annealing with {self.num_steps} temperatures", "temperatures"
            if self.num_steps == 1:
                draws = "one draw" if self.num_chains == 1 else f"{self.num_chains} draws"
                by, more = f"importance sampling by {draws}", "draws (num_chains)"
            yield (
                f"the bounds are {gap} apart: {by} may miss log p(x) by that much; use more {more}, or start "
                "from a better guide"
            )

    def lines(self) -> list[tuple[str, str]]:
        """The printed result: name and value of each quantity."""
        start = "prior" if self.from_prior else "guide"
        acceptance = float(self.acceptance.double().mean())
        moves = [("acceptance, mean", f"{acceptance:.2f}")] if self.num_steps > 1 else []
        verdict = (
            "they cross" if self.cross else "they meet" if self.meets() else "they do not meet"
        )
        return [
            (f"log p(x) >=, from the {start}", str(self.lower)),
            ("log p(x) <=, from the posterior", str(self.upper)),
            ("gap", f"{self.gap}{f' ({verdict})' if self.num_rows > 1 else ''}"),
            *moves,
        ]


def bidirectional_monte_carlo(
    model: Program,
    guide: Program | None,
    x: DataLike,  # only its shape counts, and covariates
    *,
    num_chains: int = 16,
    num_steps: int = 1000,
    num_leapfrog: int = 10,
    seed: int | None = None,
    progress: bool | None = None,
) -> Sandwich:
    """Bounds log p(x) from both sides on rows drawn from the model, to show how far to trust annealing.

    For each row (z, x) ~ p(x, z), z is an exact draw from the posterior p(z | x). Annealing from the guide
    (or the prior) to the posterior gives weights whose mean is p(x) in expectation, and so a lower bound of
    log p(x). Annealing back from z gives weights whose mean is 1 / p(x), and so an upper bound. Where the two
    meet, `annealed_importance_sampling` with the same settings is right on rows like these (Grosse et al.,
    "Sandwiching the marginal likelihood using bidirectional Monte Carlo", arXiv:1511.02543).

    `num_steps=1` is importance sampling by K = `num_chains` draws, with weights w_k = p(x, z_k) / q(z_k | x).
    It takes any latents, also discrete ones, along which nothing can be annealed. In the upper bound the exact
    draw takes the place of one of them, as 1 / mean(w, w_2, ..., w_K) is 1 / p(x) in expectation. It shows how
    low the importance-weighted bound of `evaluate` is with as many samples.

    Args:
        model: Pyro program of p(x, z); its observed sites are sampled.
        guide: Pyro program of q(z | x) to start from; None starts from the prior. It must draw the model's
            latents themselves (an `AutoNormal` does not).
        x: Rows that set the number and shape of the simulated ones. Arguments that no site observes
            (covariates) are kept.
        num_chains: Chains per row and direction.
        num_steps: Number of temperatures; 1 for importance sampling.
        num_leapfrog: Leapfrog steps between two temperatures.
        seed: Seed for the rows and the chains; None draws from torch's global generator.
        progress: Whether to show a progress bar; None shows one on a terminal.

    Returns:
        A `Sandwich`.

    Raises:
        PairError: In the cases listed for `annealed_importance_sampling`; also if the observed sites
            cannot be sampled, or are not arguments of the model.
        ValueError: A number of chains or steps is not positive, or `x` has no rows.

    Example:
        >>> from ppl_vae.models import ProbabilisticPCA
        >>> model = ProbabilisticPCA((2,), latent_dim=1, sigma=0.5)
        >>> found = bidirectional_monte_carlo(model, None, torch.zeros(5, 2), num_steps=100, seed=0)
        >>> found.meets(within=0.1)
        True
    """
    schedule = AnnealingSchedule(num_chains, num_steps, num_leapfrog)

    def work(chunk: Chunk) -> dict[str, Tensor]:
        batch, latents = simulate(chunk.pair, chunk.batch)
        values = _of_guide(chunk.layout, latents)
        chunk = chunk.on(batch)
        there, back = StreamingWeights(num_chains), StreamingWeights(num_chains)
        accepted: Any = 0.0
        for chains in chunk.chains:
            for weights, start in (
                (there, chunk.draw(chains)),
                (back, chunk.draw(chains, values)),
            ):
                log_weights, acceptance = chunk.anneal(start, back=weights is back)
                weights.update(log_weights)
                accepted = accepted + acceptance * chains
        found = {
            "lower": there.log_mean_exp,
            "upper": -back.log_mean_exp,
            "lower_error": there.monte_carlo_error,
            "upper_error": back.monte_carlo_error,
            "acceptance": accepted / (2 * num_chains),
        }
        return found | {f"argument {i}": t for i, t in enumerate(tensors_of(batch))}

    if num_steps == 1:
        found, texts = _by_importance(model, guide, x, num_chains, seed, progress)
    else:
        found, _, texts = in_chunks(
            work, model, guide, x, schedule, runs=2, seed=seed, progress=progress, label="sandwich"
        )
    arguments = tuple(t for name, t in found.items() if name.startswith("argument "))
    return Sandwich(
        lower=Estimate(found["lower"]),
        upper=Estimate(found["upper"]),
        lower_error=found["lower_error"],
        upper_error=found["upper_error"],
        acceptance=found["acceptance"],
        data=arguments if len(arguments) > 1 else arguments[0],
        num_chains=num_chains,
        num_steps=num_steps,
        num_leapfrog=num_leapfrog,
        from_prior=guide is None,
        **texts,
    )


def _by_importance(
    model: Program,
    guide: Program | None,
    x: DataLike,
    num_draws: int,
    seed: int | None,
    progress: bool | None,
) -> tuple[dict[str, Tensor], dict[str, tuple[str, ...]]]:
    """The bounds by draws, all but one of which count in both, and the result's texts."""
    start = PriorGuide(model) if guide is None else guide

    def log_weights(rows: RowDensities) -> Tensor:  # `PriorGuide` does not score its draws
        return rows.log_likelihood if guide is None else rows.log_weights

    parts: list[dict[str, Tensor]] = []
    with (
        pyro.validation_enabled(False),  # before the layout is found: a flow states no support
        opened(model, start, x, seed=seed, progress=progress) as session,
    ):
        conditions = Conditions(session)
        rows, at_once = session.chunk_sizes(num_draws)
        for chunk in session.chunks(rows, "sandwich"):
            layout = session.layouts.of(chunk)
            if layout.shared:
                raise PairError(
                    f"latent site '{layout.shared[0]}' belongs to all rows: the sandwich bounds log p(x) of "
                    "single rows"
                )
            require_proper(layout, "the sandwich", session.pair.model)
            require_no_points(
                layout, "the sandwich from the guide (guide=None starts at the prior)"
            )
            batch, latents = simulate(session.pair, chunk)
            values = _of_guide(layout, latents)
            below, above = StreamingWeights(num_draws), StreamingWeights(num_draws)
            above.update(log_weights(session.sample(batch, 1, values)))
            while below.count < num_draws:
                size = min(at_once, num_draws - below.count)
                found_now = log_weights(session.sample(batch, size))
                below.update(found_now)
                if left := min(size, num_draws - above.count):
                    above.update(found_now[:left])
            found = {
                "lower": below.log_mean_exp,
                "upper": above.log_mean_exp,
                "lower_error": below.monte_carlo_error,
                "upper_error": above.monte_carlo_error,
                "acceptance": torch.full_like(below.log_mean_exp, math.nan),
            }
            found |= {f"argument {i}": t for i, t in enumerate(tensors_of(batch))}
            parts.append({name: t.cpu() for name, t in found.items()})
            conditions.add(chunk)
    texts = {
        "notes": (*conditions.notes, *session.findings.notes),
        "cautions": session.findings.doubts,
    }
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}, texts


def _of_guide(layout: Layout, latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The latents that a row was simulated with, as the guide's draws.

    Raises:
        PairError: The guide draws others.
    """
    strange = [name for name in layout.draws if name not in latents]
    if strange:
        raise PairError(
            f"the guide draws site '{strange[0]}', which the model does not have: its value for a simulated "
            "row is unknown. Start from the prior (guide=None), or from a guide that draws the model's latents "
            "themselves"
        )
    return {name: latents[name] for name in layout.draws}


_FEW = 8
"""Rows that show whether what a model draws follows the data."""


def simulate(pair: Pair, batch: Batch) -> tuple[Batch, dict[str, Tensor]]:
    """Rows drawn from the model to replace those of a batch, and the latents that they were drawn with.

    Raises:
        PairError: An observed site cannot be sampled, or its values are not an argument of the model, or the
            model scores its own draws differently when they are given to it.
    """
    args = tensors_of(batch)
    asked = poutine.trace(pair.model).get_trace(*as_args(batch))
    observed = {n: s for n, s in sample_sites(asked).items() if s["is_observed"]}
    factors = [name for name, site in observed.items() if isinstance(site["fn"], dist.Unit)]
    if factors:
        raise PairError(
            f"site '{factors[0]}' is a factor, which cannot be sampled: bidirectional Monte Carlo needs rows "
            "drawn from the model itself"
        )
    try:
        drawn = poutine.trace(poutine.uncondition(pair.model)).get_trace(*as_args(batch))
    except Exception as error:
        raise PairError(
            f"the model's observed sites ({', '.join(observed)}) cannot be sampled: {first_line(error)}. "
            "Bidirectional Monte Carlo needs rows drawn from the model itself"
        ) from error
    arguments = list(args)
    for name, site in observed.items():
        i = _argument_of(name, site, args, alone=len(observed) == 1)
        value: Any = drawn.nodes[name]["value"]
        shape = args[i].shape if value.numel() == args[i].numel() else value.shape
        arguments[i] = value.reshape(shape).to(args[i].dtype)
    latents = {n: s["value"] for n, s in sample_sites(drawn).items() if n not in observed}
    found = with_tensors(batch, arguments)
    again = poutine.trace(poutine.condition(pair.model, data=latents)).get_trace(*as_args(found))
    for name in observed:
        _require_same(name, drawn, again)
    return found, latents


class _FollowsDataError(PairError):
    """What a model draws as data depends on the data that it was given."""


def warn_if_draws_follow_data(pair: Pair, batch: Batch) -> None:
    """Warns if what the model draws as data depends on the data that it is given.

    A decoder that sees the values before the one that it scores (teacher forcing) goes on from those of the
    batch; a rate that is scaled by the sum of a row's counts follows that sum. The random state does not
    change.
    """
    few = batch if pair.keeps_rows else take_rows(batch, slice(0, _FEW))
    with preserve_random_state():
        try:
            simulate(pair, few)
        except _FollowsDataError:
            text = (
                "the model's distribution of the data depends on the data themselves (teacher forcing, or the "
                "sum of a row's counts): draws of data follow the rows given, and are none from p(x)"
            )
            warnings.warn(text, PairWarning, stacklevel=3)
        except Exception:  # sites that are no argument, or cannot be drawn
            return


def _argument_of(name: str, site: Site, args: tuple[Tensor, ...], alone: bool) -> int:
    """Index of the model's argument that holds the value observed at a site."""
    value = site["value"]
    fits = [i for i, x in enumerate(args) if x.numel() == value.numel()]
    # The program may cast its arguments.
    same = [i for i in fits if torch.equal(args[i].reshape(value.shape).to(value.dtype), value)]
    if isinstance(innermost(site["fn"]), Sentences):  # which the program may fill up
        same += [i for i, x in enumerate(args) if i not in fits and _is_filled_up(x, value)]
    for found in (same, fits if alone else []):
        if len(found) == 1:
            return found[0]
    raise PairError(
        f"none of the model's arguments, or more than one, is what site '{name}' observes: it is unclear which "
        "one a simulated value replaces. Pass the observed tensor itself to the model as an argument"
    )


def _is_filled_up(x: Tensor, sentences: Tensor) -> bool:
    """Whether sentences are those of an argument, filled up to a larger width."""
    if x.dim() != 2 or sentences.dim() != 2 or x.shape[1] >= sentences.shape[1]:
        return False
    missing = sentences.shape[1] - x.shape[1]
    return torch.equal(torch.nn.functional.pad(x.to(sentences.dtype), (0, missing)), sentences)


def _require_same(name: str, drawn: Trace, again: Trace) -> None:
    """Checks that the model gives a draw the density that it was drawn with."""
    one, two = drawn.nodes[name], again.nodes[name]
    first = unscaled(one)
    second = unscaled(two).to(first)
    scale = 1 + float(first.abs().max())
    if one["value"].shape != two["value"].shape or not torch.allclose(
        one["value"], two["value"].to(one["value"].dtype), atol=1e-5
    ):
        raise PairError(
            f"what the model observes at site '{name}' is computed from the data: one run cannot draw rows. "
            "Pass the observed tensor itself to the model as an argument"
        )
    if not torch.allclose(first, second, rtol=1e-4, atol=1e-4 * scale):
        raise _FollowsDataError(
            f"the distribution at site '{name}' depends on the data that are observed there (teacher forcing, "
            "or the sum of a row's counts): one run cannot draw rows"
        )
