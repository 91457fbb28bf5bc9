"""The rate-distortion curve of one decoder under its own prior, by annealed importance sampling."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ppl_vae.evaluation import AnnealingSchedule, Chunk, in_chunks
from ppl_vae.pairs import DataLike, PairError, Program
from ppl_vae.rate_distortion.arguments import require_positive
from ppl_vae.runtime import described
from ppl_vae.stats import Estimate, Result, RowResult, not_finite

SLOPES = (0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0)
"""Slopes of the points unless others are asked for: beta from 10 down to 0.1."""

FINEST = 1000.0
"""Temperatures are equally spaced up to this fraction of the last one, and beyond it by equal factors."""


@dataclass(frozen=True)
class CurvePoint(RowResult):
    """A point of `frozen_decoder_curve`, row by row, in nats.

    Attributes:
        rate: KL(q_t(z | x) || p(z)): an upper bound in expectation, for an encoder with this distortion.
        distortion: -E log p(x | z) under that encoder.
        rate_error: Monte-Carlo standard error of each row's rate (delta method), `(n,)`; NaN with a single
            chain.
        distortion_error: The same for each row's distortion, `(n,)`.
        ess: Effective number of chains of each row, (sum w)^2 / sum w^2, `(n,)`.
        slope: t, with q_t(z | x) proportional to p(z) p(x | z)^t: -dR/dD at the point, and 1 / beta.
    """

    rate: Estimate
    distortion: Estimate
    rate_error: Tensor
    distortion_error: Tensor
    ess: Tensor
    slope: float

    derived = ("elbo",)

    @property
    def beta(self) -> float:
        """1 / slope: the weight of the rate at which this encoder is best."""
        return 1 / self.slope

    @property
    def elbo(self) -> Estimate:
        """-(rate + distortion) of each row; for slope 1, log p(x) by annealed importance sampling."""
        return Estimate(-self.rate.values - self.distortion.values)

    def lines(self) -> list[tuple[str, str]]:
        """The printed result: name and value of each quantity."""
        return [
            ("rate", str(self.rate)),
            ("distortion", str(self.distortion)),
            ("slope -dR/dD = 1 / beta", f"{self.slope:.4g}"),
            ("ESS, median", f"{float(self.ess.double().median()):.1f} chains"),
        ]


@dataclass(frozen=True)
class FrozenDecoderCurve(Result):
    """Result of `frozen_decoder_curve`: what the best guide of each beta would reach with this decoder.

    Attributes:
        points: The points, from a low rate to a high one.
        acceptance: Mean acceptance of each row's transitions, `(n,)`; step sizes are tuned for 0.65.
        num_chains: Chains per row.
        num_steps: Number of temperatures.
        num_leapfrog: Leapfrog steps between two temperatures.
    """

    points: tuple[CurvePoint, ...]
    acceptance: Tensor
    num_chains: int
    num_steps: int
    num_leapfrog: int

    @property
    def num_rows(self) -> int:
        """The number of rows n."""
        return len(self.acceptance)

    def __iter__(self) -> Iterator[CurvePoint]:
        return iter(self.points)

    def at(self, slope: float) -> CurvePoint:
        """The point with this slope.

        Raises:
            ValueError: There is none.
        """
        for point in self.points:
            if math.isclose(point.slope, slope):
                return point
        known = ", ".join(f"{point.slope:g}" for point in self.points)
        raise ValueError(f"no point has the slope {slope:g}, only {known}: ask for it in `slopes`")

    def doubts(self) -> Iterator[str]:
        """Reasons not to trust the numbers, one sentence each."""
        few = [
            p.slope for p in self if float((p.ess < 0.25 * self.num_chains).double().mean()) > 0.1
        ]
        if few:
            yield (
                f"fewer than a quarter of the {self.num_chains} chains are effective on more than a tenth of "
                f"the rows at the slopes {', '.join(f'{slope:g}' for slope in few)}: the curve may be lower; "
                f"use more than {self.num_steps} temperatures"
            )
        if self.num_chains == 1:
            yield "a single chain gives no estimate of its error; use more chains"
        stuck = int((self.acceptance < 0.3).sum())
        if stuck:
            yield (
                f"less than 30 % of the transitions are accepted on {stuck} of {self.num_rows} rows: the curve "
                "may be lower; use more leapfrog steps"
            )
        for point in self:
            yield from not_finite(f"the rate at the slope {point.slope:g}", point.rate)

    def table(self) -> list[list[str]]:
        """A line for each point, with its header first."""
        rows = [["slope", "beta", "rate", "distortion", "ELBO", "ESS, median"]]
        for p in self:
            numbers = [estimate.numbers(".3f") for estimate in (p.rate, p.distortion, p.elbo)]
            ess = f"{float(p.ess.double().median()):.1f} of {self.num_chains}"
            rows.append([f"{p.slope:.4g}", f"{p.beta:.4g}", *numbers, ess])
        return rows

    def lines(self) -> list[tuple[str, str]]:
        """None: the table says all."""
        return []

    def caption(self) -> list[str]:
        """What the numbers are."""
        return [f"Nats per row ± standard error over {self.num_rows} rows."]

    def summary_numbers(self) -> dict[str, Any]:
        """The numbers of `to_dict`."""
        names = ("num_rows", "num_chains", "num_steps", "num_leapfrog")
        settings = {name: getattr(self, name) for name in names}
        return {**settings, "unit": "nats", "points": [p.summary_numbers() for p in self]}


def frozen_decoder_curve(
    model: Program,
    x: DataLike,
    *,
    slopes: Sequence[float] = SLOPES,
    num_chains: int = 16,
    num_steps: int = 1000,
    num_leapfrog: int = 10,
    seed: int | None = None,
    progress: bool | None = None,
) -> FrozenDecoderCurve:
    """The rate-distortion curve of a decoder that is not trained, under its own prior.

    Of all encoders, q_t(z | x) = p(z) p(x | z)^t / Z_t(x) has the lowest rate KL(q || p(z)) at its distortion
    -E log p(x | z); there, the curve has the slope dR/dD = -t. It is what beta-VAE with beta = 1 / t would
    reach if only the guide were trained, with a guide that can be anything. Chains start at the prior, and move
    along p(z) p(x | z)^t by Hamiltonian Monte Carlo as t rises, past all `slopes` in one pass. With the chains'
    weights w, which estimate Z_t, and their places z,

        distortion = -sum_k w_k log p(x | z_k) / sum_k w_k,
        rate = -t distortion - log (1/K sum_k w_k).

    In expectation, this is an upper bound on the rate of an encoder with this distortion: the one that draws z
    from the chains by their weights. So the curve is on or below the points, and they approach it as the number
    of temperatures grows ("Evaluating Lossy Compression Rates of Deep Generative Models", arXiv:2008.06653). At
    t = 1, -(rate + distortion) is log p(x) by `annealed_importance_sampling` from the prior.

    A pair's own point is that of `evaluate`, its `rate` and `distortion`: how far it is above the curve is what
    its guide loses. A decoder that is trained for another beta has another curve.

    Args:
        model: Pyro program of p(x, z).
        x: A tensor or array `(n, *event)`, a tuple of them, or an iterable of batches; all that
            `ppl_vae.pairs.Batches` takes.
        slopes: The t of the points, each above 0: 1 / beta, or lambda where rate + lambda distortion is
            minimized.
        num_chains: Chains per row.
        num_steps: About how many temperatures, from 0 to the largest slope. Each chain takes about 1.1 times as
            many times `num_leapfrog` gradients of log p(x, z).
        num_leapfrog: Leapfrog steps between two temperatures.
        seed: Seed for the draws; None draws from torch's global generator.
        progress: Whether to show a progress bar; None shows one on a terminal.

    Returns:
        A `FrozenDecoderCurve`, whose points are in the order of rising slopes.

    Raises:
        PairError: A latent is discrete, or belongs to all rows, or has a support without a bijection from real
            numbers; also in the cases listed for `evaluate`.
        TypeError: `slopes` are no numbers.
        ValueError: A slope or a number of chains or steps is not positive, or `x` has no rows.

    Example:
        >>> from ppl_vae.models import ProbabilisticPCA
        >>> x = torch.randn(20, 3) * torch.tensor([3.0, 1.0, 0.1])
        >>> model = ProbabilisticPCA((3,), latent_dim=1).maximum_likelihood(x)
        >>> curve = frozen_decoder_curve(model, x, slopes=[0.5, 1.0], num_steps=100, seed=0)
        >>> low, high = curve
        >>> low.rate.mean < high.rate.mean, low.distortion.mean > high.distortion.mean
        (True, True)
    """
    wanted = _slopes(slopes)
    temperatures, places = _temperatures(wanted, num_steps)
    # Checks the number that was asked for, before it is replaced by that of the temperatures.
    AnnealingSchedule(num_chains, num_steps, num_leapfrog)
    schedule = AnnealingSchedule(num_chains, len(temperatures) - 1, num_leapfrog, temperatures)

    def work(chunk: Chunk) -> dict[str, Tensor]:
        if chunk.layout.discrete:
            raise PairError(
                f"latent site '{chunk.layout.discrete[0]}' is discrete: the curve of a frozen decoder is found "
                "by moving real numbers. For a table p(x | z), blahut_arimoto has the exact curve"
            )
        kept: dict[int, list[tuple[Tensor, Tensor]]] = {place: [] for place in places}

        def watch(t: int, log_weights: Tensor, point: Any) -> None:
            if t in kept:
                kept[t].append((log_weights, point.ratio))

        accepted: Any = 0.0
        for chains in chunk.chains:
            _, acceptance = chunk.anneal(chunk.draw(chains), watch=watch)
            accepted = accepted + acceptance * chains
        found: dict[str, Tensor] = {"acceptance": accepted / num_chains}
        for i, (slope, parts) in enumerate(zip(wanted, kept.values(), strict=True)):
            log_weights, log_likelihood = (torch.cat(each) for each in zip(*parts, strict=True))
            for name, values in _estimates(slope, log_weights, log_likelihood).items():
                found[f"{name} {i}"] = values
        return found

    found, _, texts = in_chunks(
        work, model, None, x, schedule, runs=1, seed=seed, progress=progress, label="curve"
    )
    points = tuple(
        CurvePoint(
            rate=Estimate(found[f"rate {i}"]),
            distortion=Estimate(found[f"distortion {i}"]),
            rate_error=found[f"rate_error {i}"],
            distortion_error=found[f"distortion_error {i}"],
            ess=found[f"ess {i}"],
            slope=slope,
        )
        for i, slope in enumerate(wanted)
    )
    return FrozenDecoderCurve(
        points, found["acceptance"], num_chains, schedule.num_steps, num_leapfrog, **texts
    )


def _slopes(given: Sequence[float]) -> list[float]:
    """The slopes in rising order, each once."""
    try:
        values = list(given)
    except TypeError as error:
        raise TypeError(
            f"slopes must be numbers, such as [0.5, 1.0], got {described(given)}"
        ) from error
    if not values:
        raise ValueError("slopes must hold at least one number")
    return sorted({require_positive(f"slopes[{i}]", value) for i, value in enumerate(values)})


def _temperatures(slopes: Sequence[float], num_steps: int) -> tuple[list[float], list[int]]:
    """Temperatures from 0 past all slopes, and the places of the slopes among them; the last one twice.

    They are t = c sinh(u) for equally spaced u, with c a thousandth of the last one: log p(x | z) varies most
    under the prior, and where the posterior is nearly normal, its standard deviation falls as 1 / t. The last
    one comes twice, so that there is a transition there, too.
    """
    scale = slopes[-1] / FINEST
    ends = [0.0, *(math.asinh(slope / scale) for slope in slopes)]
    found, places = [0.0], []
    for (low, high), slope in zip(pairwise(ends), slopes, strict=True):
        count = max(1, round(num_steps * (high - low) / ends[-1]))
        inner = (low + (high - low) * i / count for i in range(1, count))
        found += [*(scale * math.sinh(u) for u in inner), slope]
        places.append(len(found) - 1)
    return [*found, found[-1]], places


def _estimates(slope: float, log_weights: Tensor, log_likelihood: Tensor) -> dict[str, Tensor]:
    """Rate and distortion of each row at one slope, their Monte-Carlo errors, and the ESS, `(n,)` each.

    Args:
        slope: t.
        log_weights: Log weights of the chains, `(chains, n)`.
        log_likelihood: log p(x | z) where they are, `(chains, n)`.
    """
    chains = len(log_weights)
    likelihood = log_likelihood.to(log_weights)
    share = log_weights.softmax(0)
    mean = (share * likelihood).sum(0)
    log_normalizer = log_weights.logsumexp(0) - math.log(chains)
    # By how much each chain moves the two, to first order.
    of_distortion = share * (likelihood - mean)
    of_rate = slope * of_distortion - share + 1 / chains
    unbiased = math.sqrt(chains / (chains - 1)) if chains > 1 else math.nan
    return {
        "rate": slope * mean - log_normalizer,
        "distortion": -mean,
        "rate_error": unbiased * of_rate.square().sum(0).sqrt(),
        "distortion_error": unbiased * of_distortion.square().sum(0).sqrt(),
        "ess": 1 / share.square().sum(0),
    }
