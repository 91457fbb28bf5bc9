"""Why the codes of a quantizer are not used, and what to type against it."""

from __future__ import annotations

import math
from typing import Any

from ppl_vae.codes import EMA, Gradient
from ppl_vae.diagnosis.causes import CAUSES, Cause, Text
from ppl_vae.diagnosis.remedies import (
    LONGER_BEFORE,
    Facts,
    as_long,
    begin_again,
    fit_again,
    what_to_type,
)
from ppl_vae.diagnosis.use_of_codes import UseOfCodes
from ppl_vae.networks import recipe_of
from ppl_vae.objectives import ELBO, QuantizedELBO
from ppl_vae.pairs import COLLAPSED, is_ours

LAGS = 0.08
"""`lag` as a share of `spread` from which on codes lag.

It was up to 0.05 with healthy pairs, and 0.085 or more where drift was planted."""

OF_ERROR = 0.2
"""And as a share of the quantization error."""

NOTHING_LEFT = 0.02
"""`within` as a share of `spread` below which further codes have next to nothing to explain."""

FAR = 1.0
"""`away` above which a code is farther from every vector than the vectors are from their mean."""

SMALL = 0.1
"""A commitment below which it does not hold the vectors."""

COMMITMENT = QuantizedELBO.commitment
"""The default one."""

HIDDEN = 0.1
"""What q(z | x) tells as a share of what the nearest codes would tell, below which it hides them."""

FASTER = 10.0
"""The rate of a codebook that lags, in units of what it was, or of the default one."""

OF_CODES = {
    "codes out of reach": Text(
        "these codes are nearest to no vector, so that they get no members and stay where they are",
        "start among the vectors (start=KMeansStart()) and move codes that are not used to vectors of the "
        "batch (restarts=1)",
    ),
    "encoder drift": Text(
        "the codes lag behind the encoder's vectors, which move faster",
        "let the codes move faster (a smaller EMA decay, or a higher rate of Gradient or SimVQ), or the "
        "encoder more slowly (a smaller learning_rate)",
    ),
    "weak commitment": Text(
        "the encoder's vectors are not held near their codes",
        f"raise the commitment of QuantizedELBO, to {COMMITMENT} or more",
    ),
    "codebook too large": Text(
        "the codes in use leave next to nothing to explain, so that others have nothing to do",
        "no distortion is lost; fewer codes are enough, or a prior that is fitted to their use, under which "
        "codes that nobody uses cost nothing",
    ),
    "values without use": Text(
        "the codes are fixed, and the encoder's vectors stay away from some of them",
        "nothing is lost, if the distortion is small enough: choose fewer codes, or a prior that is "
        "fitted to their use; otherwise train again with new weights, or with codes that learn "
        "(VectorQuantizer)",
    ),
    "constant codes": Text(
        "all rows have the same codes, although their vectors differ",
        "start among the vectors (start=KMeansStart()) and move codes that are not used to vectors of the "
        "batch (restarts=1)",
    ),
    "temperature too high": Text(
        "q(z | x) draws codes nearly without regard to x, although the nearest ones differ from row to row",
        "train again with new weights and a lower temperature of QuantizingEncoder, or with temperature=0, "
        "which takes the nearest codes",
    ),
    "strong decoder": Text(
        "the decoder explains the data without the codes",
        "let it see less of what it reads beside them; if it reads nothing else, train again with new weights",
    ),
}
"""For each cause of codes: what it means, and the remedy."""


def cause_of_codes(
    use: UseOfCodes,
    facts: Facts,
    *,
    identical: bool,
    dead_encoder: bool,
    learn: bool,
    not_ended: str = "",
) -> Cause | None:
    """Why codes are not used, or None if there is nothing to explain.

    Args:
        use: What rows say of the codebook.
        facts: What a remedy depends on.
        identical: Whether all rows are the same.
        dead_encoder: Whether all rows have the same vectors.
        learn: Whether the codes may learn.
        not_ended: Why the training had not ended; empty if it had, or if that is not known.
    """
    if identical and (use.noise or not use.varies):
        text = CAUSES["identical rows"]
        return Cause("identical rows", text.meaning, "", text.remedy)
    if not use.varies and dead_encoder:
        text = CAUSES["dead encoder"]
        typed = what_to_type("dead encoder", facts)
        return Cause(
            "dead encoder",
            "the encoder is dead: all rows have the same vectors",
            "up to rounding",
            text.remedy,
            *typed,
        )
    if use.varies and _hides(use):
        told = (
            f"a code has an entropy of {use.noise:.2f} nats given x and tells {use.information:.2g} of it; the "
            f"nearest one would tell {use.rounded:.2g}"
        )
        return _cause("temperature too high", told, *_cooler(facts))
    weak = commitment_of(facts) < SMALL
    lags = use.lag >= max(LAGS * use.spread, OF_ERROR * (use.within + use.lag)) and use.spread > 0
    # Of codes that are dead, too, those lag that are not far away, if it is the larger part of the error.
    drifts = not use.are_dead or (use.lag > use.within and not use.away > FAR)
    chance = use.noise and not use.varies  # draws that are the same for all rows are off by chance
    if use.are_enough and lags and drifts and not chance:
        share = (
            f"the means of the vectors of a code are {use.lag / use.spread:.0%} of the vectors' variance away "
            "from it"
        )
        if not_ended and not weak and not use.are_dead:  # they may catch up
            text = CAUSES["still training"]
            told = f"{share}; {not_ended}"
            typed = what_to_type("still training", facts)
            remedy = LONGER_BEFORE if facts.prior_epochs else text.remedy
            return Cause("still training", text.meaning, told, remedy, *typed)
        name = "weak commitment" if weak else "encoder drift"
        return _answered(name, _and_dead(share, use, weak, facts), use, facts)
    if use.varies and not use.are_dead:
        if not use.gain < COLLAPSED:
            return None
        return _cause(
            "strong decoder",
            f"with the codes of another row log p(x | z) falls by {use.gain:.2g} nats per code only",
            *begin_again(facts),
        )
    same = "the same q(z | x)" if use.noise else "the same codes"
    evidence = _dead(use) if use.varies else f"all rows have {same}"
    if not learn:
        return _cause("values without use", evidence, *begin_again(facts))
    known = not math.isnan(use.within)
    # With restarts, codes that are not used have been moved to vectors, again and again.
    reached = _restarts(facts.model) > 0 or not use.away > FAR
    if use.varies and known and use.within < NOTHING_LEFT * use.spread and reached:
        left = f"{evidence}; the others leave {use.error:.1%} of the vectors' variance"
        return _cause("codebook too large", left, "", _smaller(use, facts))
    if known and not math.isnan(use.away):
        evidence = (
            f"{evidence}; they are {use.away:.2g} standard deviations of the vectors away from the nearest one"
            f", and {use.left('the codes in use')}"
        )
    if known and weak and use.varies and not use.away > FAR:
        return _answered("weak commitment", _and_dead(evidence, use, weak, facts), use, facts)
    name = "codes out of reach" if use.are_dead else "constant codes"
    return _answered(name, evidence, use, facts)


def _hides(use: UseOfCodes) -> bool:
    """Whether q(z | x) hides what the nearest codes would tell."""
    if not use.rounded >= COLLAPSED:  # as that of codes that are certain, NaN
        return False
    most = HIDDEN * use.rounded if use.gain < COLLAPSED else 0.0
    return use.information < max(COLLAPSED, most)


def _cooler(facts: Facts) -> tuple[str, tuple[str, ...]]:
    """A line and options that train again with the nearest codes.

    Not with codes that are drawn a little: an ELBO that is paid for noise draws the vectors together before the
    decoder has learned to use them.
    """
    guide: Any = facts.guide
    if not is_ours(guide, "guides") or not getattr(guide, "temperature", 0):
        return "", ()
    again = fit_again(facts, fresh=True)
    options = ("train", "--guide.temperature", "0", *as_long(facts))
    return f"guide.temperature = 0.0; {again}", options


def commitment_of(facts: Facts) -> float:
    """The weight of the commitment that the pair was trained with; NaN if it is not known."""
    objective = facts.objective
    if type(objective) is ELBO:  # which selects QuantizedELBO
        return COMMITMENT
    return objective.commitment if isinstance(objective, QuantizedELBO) else math.nan


def _dead(use: UseOfCodes) -> str:
    is_used = "is used" if use.dead == 1 else "are used"
    return f"{use.dead:,} of {use.values:,} codes {is_used} by none of {use.uses:,} vectors"


def _and_dead(evidence: str, use: UseOfCodes, weak: bool, facts: Facts) -> str:
    dead = f", and {_dead(use)}" if use.are_dead and _dead(use) not in evidence else ""
    weight = f"; the commitment is {commitment_of(facts):g}" if weak else ""
    return f"{evidence}{dead}{weight}"


def _cause(name: str, evidence: str, code: str = "", options: tuple[str, ...] = ()) -> Cause:
    text = OF_CODES[name]
    return Cause(name, text.meaning, evidence, text.remedy, code, options)


def _answered(name: str, evidence: str, use: UseOfCodes, facts: Facts) -> Cause:
    """The cause with a line that sets what is against it in a quantizer of this library, and trains."""
    setting: list[str] = []
    options: list[str] = []
    learns = _learner(facts.model)
    weak, drifts = name == "weak commitment", name == "encoder drift"
    if drifts and learns is not None:
        attribute, value = learns
        setting.append(_set(facts.model, f"codebook.{attribute}", value))
        options += [f"--model.quantizer.learner.{attribute}", f"{value:g}"]
    if _restarts(facts.model) == 0 and (use.are_dead or not use.varies):
        setting.append(_set(facts.model, "restarts", 1.0))
        options += ["--model.quantizer.start", "KMeansStart", "--model.quantizer.restarts", "1"]
    if not weak and not setting:
        return _cause(name, evidence)
    if weak:
        beta = getattr(facts.objective, "beta", facts.beta)
        objective = QuantizedELBO(beta=beta, commitment=COMMITMENT)
        code = fit_again(facts, objective, fresh=True)
        options += ["--objective.commitment", f"{COMMITMENT:g}"]
    else:
        code = fit_again(facts)
    line = "; ".join([*setting, code])
    return _cause(name, evidence, line, ("train", *options, *as_long(facts)) if options else ())


def _levels(model: Any) -> list[Any]:
    """The codebooks of a quantizer of this library, if they learn."""
    quantizer: Any = getattr(model, "quantizer", None)
    if not is_ours(quantizer, "codes"):
        return []
    levels = [*quantizer.levels] if quantizer.depth > 1 else [quantizer]
    return [level for level in levels if hasattr(level, "codebook")]


def _set(model: Any, attribute: str, value: float) -> str:
    """A line of Python that sets an attribute of each codebook."""
    count = len(model.quantizer.levels) if model.quantizer.depth > 1 else 0
    of = [f"model.quantizer.levels[{i}]" for i in range(count)] or ["model.quantizer"]
    return "; ".join(f"{each}.{attribute} = {value:g}" for each in of)


def _restarts(model: Any) -> float:
    """Below how many uses a code is moved to a vector; NaN if that is not known."""
    return min((float(level.restarts) for level in _levels(model)), default=math.nan)


def _learner(model: Any) -> tuple[str, float] | None:
    """The setting with which codes move faster, and a value; None if that is not known."""
    for level in _levels(model):
        decay, rate = (getattr(level.codebook, name, None) for name in ("decay", "rate"))
        if decay is not None:
            faster = min(0.9, max(1 - EMA.decay, FASTER * (1 - decay)))
            return "decay", round(1 - faster, 6)
        if rate is not None:
            return "rate", FASTER * max(rate, Gradient.rate)
    return None


def _smaller(use: UseOfCodes, facts: Facts) -> tuple[str, ...]:
    """Options for a run with as many codes as are used; a pair that is there cannot be given another size."""
    quantizer = getattr(facts.model, "quantizer", None)
    recipe = recipe_of(quantizer) if _levels(facts.model) else None
    if recipe is None or use.used >= use.values:
        return ()
    return ("train", "--model.quantizer.codes", str(use.used))
