"""Random pairs whose log p(x) is known: linear ones and mixtures, also wide ones; curved ones by quadrature.

    python tests/random_targets.py --models 1000

prints, for each kind, how many rows `evaluate` calls reliable, and how many of these are off by more than four
of their standard errors.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vae import evaluate
from ppl_vae.pairs import Program as AnyProgram

ROWS = 10
FAR = 4.0
"""Standard errors from which an estimate counts as wrong."""

Program = Callable[[Tensor], None]


@dataclass(frozen=True)
class Case:
    """A pair, its rows, and log p(x) of them."""

    kind: str
    model: AnyProgram
    guide: AnyProgram
    x: Tensor
    truth: Tensor


def uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def integer(low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, ()))


def normal_guide(mean: Tensor, scale: Tensor) -> Program:
    """Normals with these means and scales, `(n, d)`; rows are found by their number, their last value."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            index = x[:, -1].long()
            pyro.sample("z", dist.Normal(mean[index], scale[index]).to_event(1))

    return guide


def numbered(x: Tensor) -> Tensor:
    """Rows with their number as last value, for guides that look theirs up; models leave it out."""
    return torch.cat([x, torch.arange(len(x), dtype=x.dtype)[:, None]], -1)


def off(mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """A guide's means and scales: the right ones, made wrong in one of several ways."""
    way = integer(0, 5)
    if way == 0:  # biased
        mean = mean + uniform(0.5, 4.0) * scale * torch.randn_like(mean)
    elif way == 1:
        scale = scale * uniform(0.05, 0.5)
    elif way == 2:
        scale = scale * uniform(2.0, 10.0)
    elif way == 3:  # each number in its own way
        scale = scale * (1.5 * torch.randn_like(scale)).exp()
    elif way == 4:  # the same q for all rows
        mean, scale = mean.mean(0).expand_as(mean), (mean.std(0) + scale.mean(0)).expand_as(scale)
    else:
        mean = mean + 1.5 * scale * torch.randn_like(mean)
        scale = scale * uniform(0.1, 1.0)
    return mean.contiguous(), scale.contiguous()


def linear(dims: tuple[int, int] = (1, 12), data: tuple[int, int] = (1, 16)) -> Case:
    """x = W z + noise: the posterior is a normal with correlations that the guide lacks."""
    d, m = integer(*dims), integer(*data)
    weights, noise = torch.randn(m, d) * uniform(0.3, 2.0), uniform(0.2, 2.0)
    z = torch.randn(ROWS, d)
    x = z @ weights.T + noise * torch.randn(ROWS, m)
    wide = weights.double()  # whose product is symmetric to its last bit only
    covariance = wide @ wide.T + noise**2 * torch.eye(m)
    truth = dist.MultivariateNormal(
        torch.zeros(m, dtype=torch.double), covariance.double()
    ).log_prob(x.double())
    posterior = torch.linalg.inv(torch.eye(d) + weights.T @ weights / noise**2)
    mean = x @ weights @ posterior.T / noise**2
    deviation = posterior.diagonal().sqrt().expand(ROWS, d)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(d), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weights.T, noise).to_event(1), obs=x[:, :-1])

    return Case("linear", model, normal_guide(*off(mean, deviation)), numbered(x), truth)


def mixture(dims: tuple[int, int] = (1, 6), data: tuple[int, int] = (1, 6)) -> Case:
    """A prior of several normals, and a guide that is right for one of them, or for all together."""
    d, m, parts = integer(*dims), integer(*data), integer(2, 4)
    centers = torch.randn(parts, d) * uniform(1.0, 6.0)
    spread = torch.rand(parts, d) + 0.3
    shares = torch.distributions.Dirichlet(torch.full((parts,), 3.0)).sample()
    weights, noise = torch.randn(m, d) * uniform(0.05, 1.0), uniform(0.5, 3.0)
    component = torch.multinomial(shares, ROWS, replacement=True)
    z = centers[component] + spread[component] * torch.randn(ROWS, d)
    x = z @ weights.T + noise * torch.randn(ROWS, m)
    logs, means, deviations = [], [], []
    for c in range(parts):
        prior = torch.diag(spread[c].double() ** 2)
        w = weights.double()
        center = w @ centers[c].double()
        covariance = w @ prior @ w.T + noise**2 * torch.eye(m, dtype=torch.double)
        logs.append(
            shares[c].double().log()
            + dist.MultivariateNormal(center, covariance).log_prob(x.double())
        )
        posterior = torch.linalg.inv(torch.linalg.inv(prior) + w.T @ w / noise**2)
        natural = torch.linalg.inv(prior) @ centers[c].double() + x.double() @ w / noise**2
        means.append((natural @ posterior.T).float())
        deviations.append(posterior.diagonal().sqrt().float().expand(ROWS, d))
    joint = torch.stack(logs)
    truth = joint.logsumexp(0)
    way = integer(0, 2)
    if way == 0:  # one of the modes, as good as can be
        chosen = integer(0, parts - 1)
        mean, deviation = means[chosen], deviations[chosen]
    elif way == 1:  # all together
        share = joint.softmax(0).float()[..., None]
        mean = (share * torch.stack(means)).sum(0)
        second = (share * (torch.stack(deviations) ** 2 + torch.stack(means) ** 2)).sum(0)
        deviation = (second - mean**2).clamp(min=1e-4).sqrt()
    else:
        mean, deviation = off(means[0], deviations[0])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            components = dist.Normal(centers, spread).to_event(1)
            z = pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(shares), components))
            pyro.sample("x", dist.Normal(z @ weights.T, noise).to_event(1), obs=x[:, :-1])

    return Case("mixture", model, normal_guide(mean, deviation), numbered(x), truth)


def curved() -> Case:
    """Two latents and a likelihood that bends, narrows or has two modes; log p(x) by quadrature."""
    shape = ("banana", "funnel", "square", "waves")[integer(0, 3)]
    strength, noise = uniform(0.3, 0.8 if shape == "funnel" else 1.5), uniform(0.2, 1.0)

    def center(z: Tensor) -> Tensor:
        a, b = z[..., 0], z[..., 1]
        if shape == "banana":
            return torch.stack([a, b + strength * (a**2 - 1)], -1)
        if shape == "funnel":
            return torch.stack([b * (strength * a).exp(), a], -1)
        if shape == "square":
            return torch.stack([a**2, strength * b], -1)
        return torch.stack([a + (2 * strength * b).sin(), b], -1)

    x = center(torch.randn(ROWS, 2)) + noise * torch.randn(ROWS, 2)
    # Sums over a grid are exact for a smooth density that is wider than its steps, here 0.2 / exp(0.8 * 3.5).
    side = torch.linspace(-8.0, 8.0, 1281, dtype=torch.double)
    grid = torch.cartesian_prod(side, side)
    prior = dist.Normal(0.0, 1.0).log_prob(grid).sum(-1)
    at = center(grid)
    density = torch.stack(
        [prior + dist.Normal(at, noise).log_prob(row.double()).sum(-1) for row in x]
    )
    truth = density.logsumexp(-1) + 2 * math.log(float(side[1] - side[0]))
    probability = (density - density.logsumexp(-1, keepdim=True)).exp()
    mean = probability @ grid
    deviation = (probability @ grid**2 - mean**2).clamp(min=1e-6).sqrt()

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(center(z), noise).to_event(1), obs=x[:, :-1])

    guide = normal_guide(*off(mean.float(), deviation.float()))
    return Case(f"curved, {shape}", model, guide, numbered(x), truth)


def wide() -> Case:
    """More than 64 latents, of which the data inform some."""
    kind = (linear, mixture)[integer(0, 1)]
    found = kind((65, 300), (5, 60))
    return replace(found, kind=f"wide, {found.kind}")


KINDS = (linear, mixture, curved, linear, mixture, curved, linear, mixture, curved, wide)


def case(seed: int) -> Case:
    """The random pair of a seed."""
    torch.manual_seed(seed)
    return KINDS[seed % len(KINDS)]()


@dataclass
class Tally:
    """Rows of a kind: all, those called reliable, those of them that are wrong, and the worst.

    Attributes:
        rows: All.
        reliable: Those that are called so.
        wrong: Those of them that are off by more than `FAR` standard errors.
        worst: The largest distance of a reliable row, in standard errors.
        where: The seeds of the wrong ones.
    """

    rows: int = 0
    reliable: int = 0
    wrong: int = 0
    worst: float = 0.0
    where: tuple[int, ...] = ()


def tallies(
    seeds: range, method: Literal["auto", "guide"] = "auto", num_samples: int = 1000
) -> Iterator[tuple[str, Tally]]:
    """What `evaluate` finds for the pairs of the seeds: the kind and the tally of each."""
    for seed in seeds:
        one = case(seed)
        pyro.clear_param_store()
        options: dict[str, Any] = {"num_samples": num_samples, "seed": seed, "progress": False}
        found = evaluate(one.model, one.guide, one.x, method=method, **options)
        # Rounding of float32, besides the error of sampling.
        error = found.log_likelihood_error.double() + 1e-6 * (1 + one.truth.abs())
        distance = (found.log_likelihood.values - one.truth).abs() / error
        reliable = ~found.unreliable
        wrong = int((reliable & ~(distance <= FAR)).sum())
        worst = float(distance[reliable].max()) if bool(reliable.any()) else 0.0
        yield one.kind, Tally(len(one.x), int(reliable.sum()), wrong, worst, (seed,) * bool(wrong))


def total(parts: Iterator[tuple[str, Tally]]) -> dict[str, Tally]:
    """Tallies by kind, and of all."""
    found: dict[str, Tally] = {}
    for kind, part in parts:
        for name in (kind, "all"):
            tally = found.setdefault(name, Tally())
            tally.rows += part.rows
            tally.reliable += part.reliable
            tally.wrong += part.wrong
            tally.worst = max(tally.worst, part.worst)
            tally.where += part.where
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--method", choices=("auto", "guide"), default="auto")
    parser.add_argument("--num_samples", type=int, default=1000)
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.models)
    for name, tally in sorted(total(tallies(seeds, options.method, options.num_samples)).items()):
        print(
            f"{name:<16} {tally.rows:>6} rows, {tally.reliable:>6} reliable, {tally.wrong:>4} of them wrong, "
            f"worst {tally.worst:.1f} errors; seeds {tally.where[:12]}"
        )


if __name__ == "__main__":
    main()
