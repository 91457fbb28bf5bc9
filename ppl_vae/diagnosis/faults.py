"""What is wrong with a pair beside unused dimensions: overfitting, the prior, log p(x); each in a sentence."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Protocol

import torch
from torch import Tensor

from ppl_vae.evaluation import FEWEST_SAMPLES
from ppl_vae.pairs import has_prior, is_ours
from ppl_vae.stats import Estimate, standard_error
from ppl_vae.training import Fit

SURE = 3.0
"""Standard errors that a difference must exceed to be named."""

LEAST = 0.5
"""Nats per row that a difference must exceed, or a hundredth of the ELBO, if that is more."""

OFF_THE_PRIOR = 1.0
"""KL(aggregate posterior || prior) in nats from which on it is named; few rows may raise it by some 0.3."""

EARLIER = "stop earlier (patience)"
"""How to keep a pair from overfitting with time."""

SIMPLER = (
    "train on more rows, or make the model simpler (fewer components or latent dimensions, simpler "
    "covariances, a higher floor)"
)
"""How to keep a model without networks from overfitting, which fits its rows in closed form."""

MANY = 0.1
"""Share of rows with a bad k-hat from which on it is named."""


class Evaluated(Protocol):
    """The part of what `evaluate` finds that a diagnosis reads."""

    @property
    def elbo(self) -> Estimate:
        """The ELBO, per row."""

    @property
    def log_likelihood(self) -> Estimate:
        """log p(x), per row."""

    @property
    def unreliable(self) -> Tensor:
        """Rows whose log p(x) should not be trusted, `(n,)`."""

    @property
    def method(self) -> list[str]:
        """How log p(x) of each row was found: by samples of the "guide", or by others."""


class MomentGap:
    """A lower bound on KL(aggregate posterior || prior) from means and variances, for normal priors.

    In units of the prior, given the latents before it, a latent is N(0, 1) under the model. Among all
    distributions of mean m and variance v the normal one is closest to it: the KL is at least
    (v + m^2 - 1 - log v) / 2, and the sum of this over the latents. Unlike the estimate from the aggregate
    posterior's density, it does not need more rows than the latents can tell apart.

    Example:
        >>> gap = MomentGap()
        >>> gap.update(1 + 0.5 * torch.randn(20, 1000, 2, generator=torch.Generator().manual_seed(0)))
        >>> exact = 2 * 0.5 * (0.25 + 1 - 1 - math.log(0.25))
        >>> abs(gap.nats - exact) < 0.05
        True
    """

    def __init__(self) -> None:
        self._sums: Tensor | None = None
        self._known = True
        self._rows = 0

    def update(self, units: Tensor | None) -> None:
        """Adds draws of some rows in units of the prior, `(samples, n, d)`; None if they have no such units."""
        sums = None
        if units is not None and self._known:
            units = units.double()
            sums = torch.stack([units.mean(0).sum(0), units.square().mean(0).sum(0)]).cpu()
        if sums is None or (self._sums is not None and self._sums.shape != sums.shape):
            self._known = False
            return
        assert units is not None
        self._sums = sums if self._sums is None else self._sums + sums
        self._rows += units.shape[1]

    @property
    def nats(self) -> float:
        """The bound, nats, less what the noise of so many rows adds; 0 if nothing is known."""
        if not self._known or self._sums is None:
            return 0.0
        mean, square = self._sums / self._rows
        variance = (square - mean.square()).clamp(min=1e-12)
        terms = 0.5 * (variance + mean.square() - 1 - variance.log())
        return max(0.0, float(terms.sum()) - len(mean) / self._rows)


def overfits(train: Estimate, held: Estimate) -> bool:
    """Whether the ELBO of training rows is clearly higher than that of held-out rows.

    By more than three standard errors of the difference, 0.5 nats, and a hundredth of the ELBO.

    Args:
        train: The ELBO of rows that a pair was trained on.
        held: That of other rows.

    Example:
        >>> held = Estimate(torch.linspace(-91.0, -89.0, 100))
        >>> overfits(Estimate(torch.linspace(-86.0, -84.0, 100)), held), overfits(held, held)
        (True, False)
    """
    return _is_large(*_difference(train, held), held)


def overfitting(
    train: Evaluated, held: Evaluated | Estimate, *, earlier: str = EARLIER, simpler: str = ""
) -> dict[str, str]:
    """Whether the ELBO of training rows is clearly higher than that of held-out rows, and whose fault it is.

    ELBO = log p(x) - gap, with the gap KL(q(z | x) || p(z | x)): what of the difference is one of log p(x)
    is the decoder's, what is one of the gap is the encoder's.

    Args:
        train: What `evaluate` found for rows that the pair was trained on.
        held: The same for held-out rows; or their ELBO alone.
        earlier: How to stop earlier.
        simpler: What to do about a model without networks; empty if there are networks.
    """
    bound = held if isinstance(held, Estimate) else held.elbo
    if not overfits(train.elbo, bound):
        return {}
    difference, _ = _difference(train.elbo, bound)
    bounds = f"ELBO {bound.numbers('.1f')}, training {train.elbo.numbers('.1f')}"
    if isinstance(held, Estimate):
        return _either(
            bounds,
            earlier,
            "evaluation=evaluate(...) tells whether decoder or encoder does",
        )
    if certain(train) or certain(held):
        why = "log p(x) of codes is known only from below"
        return _either(bounds, earlier, f"whether decoder or encoder does is not known, as {why}")
    doubtful = max(_share(train.unreliable), _share(held.unreliable))
    if doubtful > MANY:
        why = f"as log p(x) is not reliable on {doubtful:.0%} of the rows"
        return _either(bounds, earlier, f"whether decoder or encoder does is not known, {why}")
    of_decoder, decoder_error = _difference(train.log_likelihood, held.log_likelihood)
    of_encoder, encoder_error = _difference(_gap(held), _gap(train))
    decoder = f"{of_decoder:.1f} ± {decoder_error:.1f} nats"
    encoder = f"{of_encoder:.1f} ± {encoder_error:.1f} nats"
    # What is less than a fifth of the whole is not worth a remedy of its own.
    in_decoder = of_decoder > max(SURE * decoder_error, 0.2 * difference)
    in_encoder = of_encoder > max(SURE * encoder_error, 0.2 * difference)
    if not (in_decoder or in_encoder):
        differ = f"log p(x) differs by {decoder}, log p(x) - ELBO by {encoder}"
        return _either(
            bounds,
            earlier,
            f"more rows would show whether decoder or encoder does ({differ})",
        )
    found = {}
    if in_decoder:
        also = "" if in_encoder else f", and log p(x) - ELBO differs by {encoder}"
        which = "model" if simpler else "decoder"
        remedy = simpler or f"train on more rows, make the model's network smaller, or {earlier}"
        found["overfit decoder"] = (
            f"The {which} overfits: log p(x) is {decoder} lower on these rows than on training rows ({bounds})"
            f"{also}; {remedy}."
        )
    if in_encoder:
        also = "" if in_decoder else f" ({bounds}), and log p(x) differs by {decoder}"
        found["overfit encoder"] = (
            f"The encoder overfits: its gap log p(x) - ELBO is {encoder} larger on these rows than on training "
            f"rows{also}; make the guide's network smaller, {earlier}, or refine q for each row "
            "(SemiAmortized)."
        )
    return found


def certain(evaluation: Evaluated) -> bool:
    """Whether only the ELBO was measured, as the guide puts all of its mass on one value of each latent."""
    return bool(getattr(evaluation, "certain", False))


def _either(bounds: str, earlier: str, which: str) -> dict[str, str]:
    return {
        "overfit": (
            f"The pair overfits: its ELBO is lower on these rows than on training rows ({bounds}); train on "
            f"more rows, make the networks smaller, or {earlier}; {which}."
        )
    }


def overfitting_in_history(
    last: float, held: Estimate, when: str, *, earlier: str = EARLIER
) -> dict[str, str]:
    """The same from the ELBO of an epoch, which has no error and was measured while training.

    Args:
        last: The mean ELBO of the training rows in that epoch.
        held: The ELBO of the held-out rows.
        when: Which epoch it is, in words.
        earlier: How to stop earlier.
    """
    error = math.sqrt(2) * held.standard_error  # as if there were as many training rows
    if not _is_large(last - held.mean, error, held):
        return {}
    return _either(
        f"ELBO {held.numbers('.1f')}, training {last:.1f} in {when}",
        earlier,
        "train=evaluate(...) of training rows tells whether decoder or encoder does",
    )


def of_kept_epoch(fit: Fit, name: str) -> tuple[float | None, str]:
    """A metric of the epoch whose weights a pair has, and which epoch that is, in words.

    Returns:
        None if it is not known.
    """
    of_pair = fit.epochs - fit.prior_epochs
    kept = of_pair if fit.prior_epochs else fit.best_epoch
    if not 0 < kept <= len(fit.history):
        return None, ""
    when = "the last epoch" if kept == of_pair else f"epoch {kept}, whose weights are kept"
    return fit.history[kept - 1].get(name), when


def off_the_prior(
    marginal: Estimate, bounded: bool, least: float, beta: float, model: object = None
) -> dict[str, str]:
    """Whether the aggregate posterior is not the prior.

    Args:
        marginal: KL(aggregate posterior || prior).
        bounded: Whether that is an upper bound only.
        least: A lower bound on it.
        beta: The weight of the KL that the pair was trained with.
        model: The model. Models of colors have a prior of their own, whose scale is learned.
    """
    nats = least if bounded else marginal.mean
    if not nats > OFF_THE_PRIOR:  # or it is not known
        return {}
    if not bounded and nats < SURE * marginal.standard_error:
        return {}
    size = f"at least {nats:.1f} nats" if bounded else f"{marginal.numbers('.1f')} nats"
    raise_beta = f"raise beta, which is {beta:g}, or " if beta < 1 else ""
    if is_ours(model, "models.colorization"):
        remedy = "train longer or on more photos: the scale of the latent colors is learned."
    elif model is None or has_prior(model):
        remedy = (
            "give the model a richer prior (such as MixturePrior or FlowPrior), or fit one afterwards "
            "(refit_prior, or `ppl-vae refit-prior`)."
        )
    else:
        remedy = "give the model a richer density where it samples z, such as a mixture of normals."
    return {
        "prior mismatch": (
            f"The aggregate posterior is off the prior, by a KL of {size}; {raise_beta}{remedy}"
        )
    }


def not_trusted(evaluation: Evaluated, beta: float, model: object = None) -> dict[str, str]:
    """Whether log p(x), or the guide's own weights, say little on many rows.

    Args:
        evaluation: What `evaluate` found.
        beta: The weight of the KL that the pair was trained with: the best q under another than 1 is none of
            the posterior.
        model: The model: the commands for models of colors look for no better proposals.
    """
    found: dict[str, str] = {}
    if certain(evaluation):
        return found  # nothing is said of it
    bad = evaluation.unreliable
    alone = torch.tensor([name == "guide" for name in evaluation.method], device=bad.device)
    share = _share(bad)
    if share > MANY:
        if bool(alone.all()):
            few = getattr(evaluation, "num_samples", FEWEST_SAMPLES) < FEWEST_SAMPLES
            why = f" (below {FEWEST_SAMPLES} no better proposals are looked for)" if few else ""
            looked = "" if few else "; method='auto', the default, looks for better proposals"
            if is_ours(model, "models.colorization"):
                why, looked = "", "; evaluate(..., method='auto') looks for better proposals"
            remedy = f"raise num_samples{why}, or use a better guide{looked}"
        else:
            remedy = "evaluate with method='annealed', or by annealed_importance_sampling"
        found["log p(x) not trusted"] = (
            f"log p(x) is not to be trusted on {share:.0%} of the rows (Pareto k-hat); {remedy}."
        )
    missed = _share(~alone | bad)
    if missed > MANY and not bool(alone.all()):
        richer = "use a richer guide, such as FullCovariance or a flow (refit_guide)"
        trained = f"it was trained with beta = {beta:g}; refit_guide trains it with 1"
        found["poor guide"] = (
            f"The guide does not reach the posterior of {missed:.0%} of the rows (Pareto k-hat; their log p(x) "
            f"comes from proposals of their own); {richer if beta == 1 else trained}."
        )
    return found


def _gap(found: Evaluated) -> Estimate:
    return Estimate(found.log_likelihood.values.double() - found.elbo.values.double())


def _difference(more: Estimate, less: Estimate) -> tuple[float, float]:
    """The difference of two means over different rows, and its standard error; rows that are not finite are
    left out.
    """
    parts = [each.values.double()[each.values.isfinite()] for each in (more, less)]
    if min(len(part) for part in parts) < 2:
        return math.nan, math.nan
    errors = [float(standard_error(part)) for part in parts]
    return float(parts[0].mean() - parts[1].mean()), math.hypot(*errors)


def _is_large(difference: float, error: float, bound: Estimate) -> bool:
    return difference > max(SURE * error, LEAST, 0.01 * abs(bound.mean))


def _share(rows: Tensor) -> float:
    return float(rows.double().mean()) if len(rows) else 0.0


def what_to_type_against(
    faults: Collection[str], guide: object, beta: float
) -> dict[str, tuple[str, ...]]:
    """Options of the command line against faults, as those of a `Cause`; of a guide of ours alone.

    Args:
        faults: The names of the faults.
        guide: The guide.
        beta: The weight of the KL that the pair was trained with.
    """
    ours = is_ours(guide, "guides")
    richer = _RICHER.get(type(guide).__name__) if ours else None
    if "poor guide" not in faults or richer is None:
        return {}
    held = () if beta == 1 else ("--objective.beta", "1")
    return {"poor guide": ("refit", "--guide", richer, *held)}


_RICHER = {
    "MeanField": "FullCovariance",
    "LowRank": "FullCovariance",
    "FullCovariance": "NeuralSpline",
}
"""For guides of one normal latent, a family that holds theirs."""
