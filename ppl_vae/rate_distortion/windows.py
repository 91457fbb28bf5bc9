"""Sequences of a known source, and decoders that see a window of them: what is left for z to say."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ppl_vae.rate_distortion.arguments import numbers_of, probabilities
from ppl_vae.runtime import require_count
from ppl_vae.stats import Result


@dataclass(frozen=True)
class OutsideWindow(Result):
    """Result of `outside_window`: what a decoder with a window cannot see of a source.

    Attributes:
        window: How many values before it a value may depend on, beside z.
        entropy: H(x), nats: minus the best ELBO that there is, for any window.
        windowed: H(x_t | x_{t-w}, ..., x_{t-1}) of each value, nats, `(T,)`.
        conditional: H(x_t | x_1, ..., x_{t-1}) of each value, nats, `(T,)`; the sum is H(x).
        crossing: I(x_t, ..., x_T; x_1, ..., x_{t-w-1} | x_{t-w}, ..., x_{t-1}) at each place, nats, `(T,)`:
            what the past behind the window tells of all that is to come.
    """

    window: int
    entropy: float
    windowed: Tensor
    conditional: Tensor
    crossing: Tensor

    @property
    def lost(self) -> float:
        """What the best decoder loses if z tells nothing, nats: the ELBO is -H(x) less this."""
        return max(0.0, float((self.windowed - self.conditional).sum()))

    @property
    def information(self) -> float:
        """The information outside of the window, nats: no pair with the ELBO -H(x) has a lower I(x; z)."""
        return float(self.crossing.max())

    def lines(self) -> list[tuple[str, str]]:
        """The printed result: name and value of each quantity."""
        return [
            ("window", str(self.window)),
            ("outside of it", f"{self.information:.6f} nats, which z has to tell at least"),
            ("lost without z", f"{self.lost:.6f} nats"),
            ("entropy", f"{self.entropy:.6f} nats"),
        ]

    def summary_numbers(self) -> dict[str, Any]:
        """The numbers of `to_dict`."""
        names = ("window", "information", "lost", "entropy")
        return {"unit": "nats", **{name: getattr(self, name) for name in names}}


def outside_window(source: ArrayLike | Tensor, window: int) -> OutsideWindow:
    """What z has to tell of sequences x_1, ..., x_T if the decoder sees z and the w values before each.

    The best decoder p(x_t | z, x_{t-w}, ..., x_{t-1}) and the best prior of an encoder q(z | x) have the ELBO

        -H(x) - sum_t I(x_t; b_t | w_t, z),   w_t = (x_{t-w}, ..., x_{t-1}),   b_t = (x_1, ..., x_{t-w-1}),

    with the rate I(x; z). It is -H(x), the best that there is, if and only if z and the window tell all that
    the past tells: then sum_t I(x_t; b_t | w_t, z) = 0.

    - If z tells nothing, the sum is `lost`. With window 0 it is the total correlation of the values.
    - To bring it to 0, z must tell what crosses the window at every place: at a given t, z and w_t make
      f_t = (x_t, ..., x_T) independent of b_t, so that I(x; z) >= I(f_t; z | w_t) >= I(f_t; b_t | w_t). The
      largest of these is `information`. It is not `lost`, which counts what z tells once at each of the values
      that need it: T copies of a coin, with window 0, lose (T - 1) log 2, and a z of log 2 makes up for it.

    `information` is a lower bound of the least I(x; z). It is the least one if some z reaches it, which
    `windowed_model` shows. It is reached where what crosses the window is known to both sides (copies); what
    two values share through noise costs more, with window 0 Wyner's common information ("The Common
    Information of Two Dependent Random Variables", 1975). A z that tells more than the least has the same ELBO.

    Args:
        source: p(x) of each sequence, with a dimension for each of the T values: `(m_1, ..., m_T)`.
        window: The number w of values before it that the decoder of a value sees: 0 to see z alone; T - 1 or
            more to see all.

    Raises:
        TypeError: `source` holds no numbers, or `window` is no whole number.
        ValueError: `source` holds no probabilities, or `window` is negative.

    Example:
        >>> source = torch.zeros(2, 2, 2, 2)  # two coins, and then the same two in reverse order
        >>> for a, b in [(0, 0), (0, 1), (1, 0), (1, 1)]:
        ...     source[a, b, b, a] = 0.25
        >>> [round(outside_window(source, w).information / torch.tensor(2.0).log().item(), 6) for w in range(4)]
        [2.0, 1.0, 1.0, 0.0]
    """
    joint = _sequences(source)
    require_count("window", window, least=0)
    length = joint.dim()
    entropy = _entropy(joint, range(length))
    places = range(length)
    seen = [range(max(0, t - window), t) for t in places]
    behind = [_entropy(joint, range(t)) for t in range(length + 1)]  # of x_1, ..., x_t
    of_seen = [_entropy(joint, w) for w in seen]
    windowed = [_entropy(joint, [*w, t]) - of_seen[t] for t, w in enumerate(seen)]
    to_come = [_entropy(joint, range(w.start, length)) for w in seen]
    crossing = [max(0.0, to_come[t] + behind[t] - entropy - of_seen[t]) for t in places]
    conditional = [behind[t + 1] - behind[t] for t in places]
    parts = (torch.tensor(part, dtype=torch.float64) for part in (windowed, conditional, crossing))
    return OutsideWindow(window, entropy, *parts)


@dataclass(frozen=True)
class WindowedModel(Result):
    """Result of `windowed_model`: what an encoder reaches with the best prior and the best windowed decoder.

    Attributes:
        window: How many values before it a value may depend on, beside z.
        rate: E KL(q(z | x) || p(z)) = I(x; z), nats.
        distortions: -E log p(x_t | z, x_{t-w}, ..., x_{t-1}) of each value, nats, `(T,)`.
        entropy: H(x), nats.
    """

    window: int
    rate: float
    distortions: Tensor
    entropy: float

    @property
    def distortion(self) -> float:
        """-E log p(x | z), nats."""
        return float(self.distortions.sum())

    @property
    def elbo(self) -> float:
        """-(rate + distortion), nats per sequence; at most -H(x)."""
        return -(self.rate + self.distortion)

    @property
    def gap(self) -> float:
        """-H(x) less the ELBO, nats: what the past tells of each value, and z and the window do not."""
        return self.rate + self.distortion - self.entropy

    def loss(self, beta: float) -> float:
        """distortion + beta rate = H(x) + gap + (beta - 1) I(x; z), nats."""
        return self.distortion + beta * self.rate

    def lines(self) -> list[tuple[str, str]]:
        """The printed result: name and value of each quantity."""
        return [
            ("window", str(self.window)),
            ("ELBO", f"{self.elbo:.6f} nats, {abs(self.gap):.6f} below the best"),
            ("rate", f"{self.rate:.6f} nats"),
            ("distortion", f"{self.distortion:.6f} nats"),
        ]

    def summary_numbers(self) -> dict[str, Any]:
        """The numbers of `to_dict`."""
        names = ("window", "elbo", "rate", "distortion", "entropy", "gap")
        return {"unit": "nats", **{name: getattr(self, name) for name in names}}


def windowed_model(
    source: ArrayLike | Tensor, encoder: ArrayLike | Tensor, window: int
) -> WindowedModel:
    """The best ELBO of an encoder of sequences, with a decoder that sees z and the w values before each.

        p(z) = sum_x p(x) q(z | x),   p(x_t | z, w_t) = the conditional of p(x) q(z | x),

    so that the rate is I(x; z) and the distortion is sum_t H(x_t | w_t, z). An encoder whose gap is 0 has the
    best ELBO; if its rate is `outside_window(source, window).information`, too, no other of these has less.

    Args:
        source: p(x) of each sequence, `(m_1, ..., m_T)`.
        encoder: q(z | x) of each sequence, `(m_1, ..., m_T, k)`.
        window: The number w of values before it that the decoder of a value sees.

    Raises:
        TypeError: An argument holds no numbers, or `window` is no whole number.
        ValueError: The shapes differ, they hold no probabilities, or `window` is negative.

    Example:
        >>> source = torch.tensor([[0.5, 0.0], [0.0, 0.5]])  # a coin, twice
        >>> told = windowed_model(source, torch.eye(2).expand(2, 2, 2), window=0)  # z is the second one
        >>> round(told.rate, 6), round(told.distortion, 6), round(told.gap, 6)
        (0.693147, 0.0, 0.0)
        >>> round(windowed_model(source, torch.ones(2, 2, 1), window=0).gap, 6)
        0.693147
    """
    joint = _sequences(source)
    require_count("window", window, least=0)
    length = joint.dim()
    channel = numbers_of("encoder", encoder, None)
    if channel.shape[:-1] != joint.shape:
        raise ValueError(
            f"encoder must have the shape of the source and a last dimension for z, "
            f"({', '.join(map(str, joint.shape))}, k), got {(*channel.shape,)}"
        )
    both = joint.unsqueeze(-1) * probabilities("encoder", channel)
    entropy = _entropy(joint, range(length))
    rate = max(0.0, entropy + _entropy(both, [length]) - _entropy(both, range(length + 1)))
    left = []
    for t in range(length):
        given = [*range(max(0, t - window), t), length]
        left.append(_entropy(both, [*given, t]) - _entropy(both, given))
    return WindowedModel(window, rate, torch.tensor(left, dtype=torch.float64), entropy)


def _sequences(source: ArrayLike | Tensor) -> Tensor:
    """p(x) as a table with a dimension for each value."""
    table = numbers_of("source", source, None)
    return probabilities("source", table.flatten()).reshape(table.shape)


def _entropy(joint: Tensor, kept: Iterable[int]) -> float:
    """H of some of the dimensions of a joint table, nats."""
    others = sorted({*range(joint.dim())} - {*kept})
    p = joint.sum(others) if others else joint
    return 0.0 - float(torch.xlogy(p, p).sum())  # not -0.0
