"""Controllers of beta: the weight of the KL follows what a training reaches, until that is the target."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from ppl_vae.objectives.schedules import require_number, require_positive


@dataclass(frozen=True)
class ControlState:
    """Where a controller stands; a checkpoint holds it.

    Attributes:
        beta: The weight of the KL in the next steps.
        integral: log beta without the proportional part.
        rate: Rates of the steps since beta was last set, summed.
        distortion: Distortions of these steps, summed.
        steps: How many they are.
        weight: The sum of their weights: that of a step is 1, or how many rows it has for one of a batch of
            mean size, if batches are of unlike sizes.
    """

    beta: float
    integral: float
    rate: float = 0.0
    distortion: float = 0.0
    steps: int = 0
    weight: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Controller(ABC):
    r"""A weight beta of the KL that a controller sets, from the rate and the distortion of the steps so far.

    Every 20 steps it looks at their mean rate R and distortion D (over rows, if the batches are `Buckets`), and
    at an error e, which is positive if beta has to rise, and counts as at most 1:

    $$\log \beta = I + k_p e, \qquad I \leftarrow I + k_i e$$

    So beta stays positive, and moves until the error is 0 on average. Where beta is at a limit, I is not moved
    further in that direction (anti-windup), so that it comes back at once. With a larger k_i the target is
    reached sooner, but beta shoots over it: that may kill dimensions, which do not come back when it falls.

    Early stopping does not act: the weights of the best ELBO are not those that reach the target, so the last
    ones are kept.

    Attributes:
        start: beta in the first steps.
        least: The smallest beta.
        most: The largest beta.
        proportional: k_p.
        integral: k_i.
    """

    EVERY: ClassVar[int] = 20
    """Steps between two settings of beta."""

    TOLERANCE: ClassVar[float] = 0.05
    """Error in the end of a training above which the target was missed."""

    start: float = 1.0
    least: float = 1e-4
    most: float = 1e4
    proportional: float = 0.5
    integral: float = 0.2

    def __post_init__(self) -> None:
        name = type(self).__name__
        for setting in ("start", "least", "most", "integral"):
            require_positive(name, setting, getattr(self, setting))
        require_number(name, "proportional", self.proportional)
        if not (self.proportional >= 0 and math.isfinite(self.proportional)):
            raise ValueError(f"{name}: proportional must be at least 0, got {self.proportional}")
        if not self.least <= self.start <= self.most:
            raise ValueError(
                f"{name}: start must be between least and most, got {self.start} with least = {self.least} and "
                f"most = {self.most}"
            )

    @abstractmethod
    def error(self, rate: float, distortion: float) -> float:
        """How far the target is missed, in units of log beta; positive if beta has to rise."""

    def _checked_error(self, rate: float, distortion: float) -> float:
        """`error`, which may be somebody's own.

        Raises:
            TypeError: It is no number.
            ValueError: It is NaN.
        """
        error = self.error(rate, distortion)
        where = f"error(rate={rate:.4g}, distortion={distortion:.4g})"
        require_number(type(self).__name__, where, error)
        if math.isnan(error):
            raise ValueError(f"{type(self).__name__}.{where} is NaN: it must be a number")
        return float(error)

    def missed(
        self, rate: float, distortion: float, beta: float, steps: int, least_rate: float = 0.0
    ) -> str | None:
        """Says that a training has missed the target, why, and what to do; None if it has not.

        Args:
            rate: The mean rate of the last epochs, nats per row: of as many as have 20 steps, or of one.
            distortion: Their mean distortion.
            beta: The weight of the KL at the end.
            steps: All steps of the training.
            least_rate: The rate that the pair commits to, which no beta changes.
        """
        error = self._checked_error(rate, distortion)
        if abs(error) <= self.TOLERANCE:
            return None
        if why := self._out_of_reach(least_rate):
            pass
        elif steps < self.EVERY:
            why = (
                f"beta is set every {self.EVERY} steps, and there were {steps} in all: train for more "
                "epochs, or with smaller batches"
            )
        elif beta <= self.least:
            why = (
                f"beta has fallen to its limit, least={self.least:g}: give z more dimensions or the programs "
                "more layers, or another target"
            )
        elif beta >= self.most:
            why = f"beta has risen to its limit, most={self.most:g}: give another target"
        else:
            why = (
                f"beta has come to {beta:.3g} and still moves: train for more epochs, or give a larger "
                f"integral than {self.integral:g}"
            )
        return (
            f"{self._named()} has missed its target: in the end, the rate is {rate:.4g} and the distortion "
            f"{distortion:.4g} nats per row. {why[0].upper()}{why[1:]}"
        )

    def _out_of_reach(self, least_rate: float) -> str:
        """Why a pair that commits to a rate cannot reach the target; empty if it can."""
        return ""

    def _named(self) -> str:
        """What it is called in a message."""
        return type(self).__name__

    def begin(self) -> ControlState:
        """The state ahead of the first step."""
        return ControlState(self.start, math.log(self.start))

    def after(
        self, state: ControlState, rate: float, distortion: float, weight: float = 1.0
    ) -> ControlState:
        """The state after one more step with this rate and distortion, nats per row, and this weight."""
        sums = (state.rate + weight * rate, state.distortion + weight * distortion)
        steps, total = state.steps + 1, state.weight + weight
        if steps < self.EVERY:
            return ControlState(state.beta, state.integral, *sums, steps, total)
        means = sums[0] / total, sums[1] / total
        if not all(map(math.isfinite, means)):  # the step is about to fail, and says why
            return ControlState(state.beta, state.integral)
        error = min(max(self._checked_error(*means), -1.0), 1.0)
        low, high = math.log(self.least), math.log(self.most)
        integral = state.integral + self.integral * error
        wanted = integral + self.proportional * error
        if (wanted > high and error > 0) or (wanted < low and error < 0):
            integral = state.integral
        return ControlState(math.exp(min(max(wanted, low), high)), integral)


@dataclass(frozen=True, kw_only=True)
class TargetRate(Controller):
    r"""beta such that the rate is `nats`: `ELBO(beta=TargetRate(nats=20))`.

    A constraint in place of a weight: minimize the distortion subject to E KL(q(z | x) || p(z)) = R*. The
    error is (R - R*) / R*. In a linear VAE, beta sigma^2 ends at the water level at which the rate is R*.

    A PI controller as in ControlVAE (Shao et al., arXiv:2004.05988), of log beta; the constraint as in "Taming
    VAEs" (Rezende and Viola, arXiv:1810.00597).

    Attributes:
        nats: R*, the mean rate per row.

    Raises:
        ValueError: A setting is not positive, or `start` is beyond a limit.

    Example:
        >>> control = TargetRate(nats=20)
        >>> state = control.begin()
        >>> for _ in range(20):  # 20 steps with a rate that is too high
        ...     state = control.after(state, rate=25.0, distortion=80.0)
        >>> round(state.beta, 3)  # exp((0.2 + 0.5) * 0.25)
        1.191
    """

    nats: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("TargetRate", "nats", self.nats)

    def error(self, rate: float, distortion: float) -> float:
        return (rate - self.nats) / self.nats

    def _out_of_reach(self, least_rate: float) -> str:
        if self.nats >= least_rate:
            return ""
        return (
            f"the pair commits to a rate of at least {least_rate:.4g} nats per row (committed_rate), so that "
            "no beta reaches this target: give a larger one, or a smaller commitment"
        )

    def _named(self) -> str:
        return f"TargetRate(nats={self.nats:g})"


@dataclass(frozen=True, kw_only=True)
class TargetDistortion(Controller):
    r"""beta such that the distortion -E log p(x | z) is `nats`: as few nats of z as that takes.

    Minimize the rate subject to D = D*, the constrained form of "Taming VAEs" (Rezende and Viola,
    arXiv:1810.00597), whose multiplier is 1 / beta. The error is (D* - D) / max(R, 1): both are in nats, and
    the rate says how much of them there is to trade.

    Attributes:
        nats: D*, the mean distortion per row. It may be negative for densities.

    Raises:
        TypeError: `nats` is no number.
        ValueError: A setting is not positive, `nats` is not finite, or `start` is beyond a limit.

    Example:
        >>> TargetDistortion(nats=80).error(rate=20.0, distortion=90.0)  # too much: beta has to fall
        -0.5
    """

    TOLERANCE: ClassVar[float] = 0.1

    nats: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("TargetDistortion", "nats", self.nats)
        if not math.isfinite(self.nats):
            raise ValueError(f"TargetDistortion: nats must be finite, got {self.nats}")

    def error(self, rate: float, distortion: float) -> float:
        return (self.nats - distortion) / max(rate, 1.0)

    def _named(self) -> str:
        return f"TargetDistortion(nats={self.nats:g})"
