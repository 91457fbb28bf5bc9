"""The score function's gradients are unbiased, by sums over all values, also where draws come one by one."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.poutine.mask_messenger import MaskMessenger
from torch import Tensor

from ppl_vae.objectives import ImportanceWeightedELBO, Objective, ScoreFunctionELBO
from ppl_vae.pairs import Pair, Program, find_layout

X = torch.tensor([0.3, -1.0, 2.0])
SHOWN = torch.tensor([True, False, True])
"""Which rows are observed; a mask leaves out the others."""


def leaves() -> list[Tensor]:
    """Logits of q(b | x), means of q(n | x), and a parameter of the model."""
    given = ([0.5, -1.0, 0.2], [0.0, 1.0, -0.5], 0.4)
    return [torch.tensor(each, requires_grad=True) for each in given]


def bernoulli(p: Tensor, value: float) -> Tensor:
    found: Tensor = dist.Bernoulli(probs=p).log_prob(torch.tensor(value))
    return found


def one_by_one(value: Tensor, vectorizes: bool) -> Tensor:
    """The same, by a program that breaks if there are many samples at a time."""
    return value if vectorizes else torch.stack([value[i] for i in range(len(X))])


def mixed(given: list[Tensor], vectorizes: bool) -> tuple[Program, Program]:
    """A switch b, and a normal n after it; some rows are masked."""
    logits, means, slope = given

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            b = one_by_one(pyro.sample("b", dist.Bernoulli(0.3)), vectorizes)
            n = pyro.sample("n", dist.Normal(slope * b, 1.0))
            with MaskMessenger(mask=SHOWN):  # type: ignore[arg-type]
                pyro.sample("x", dist.Normal(n + b, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Bernoulli(logits=logits))
            pyro.sample("n", dist.Normal(means + b, 0.7))

    return model, guide


def exact_mixed(given: list[Tensor], beta: float) -> Tensor:
    logits, means, slope = given
    q, loss = logits.sigmoid(), torch.zeros(3)
    for b in (0.0, 1.0):
        p_b = q if b else 1 - q
        m = means + b
        # E of log Normal(y; n, 1) under n ~ Normal(m, 0.7), and the KL of two normals.
        log_x = SHOWN * (dist.Normal(m + b, 1.0).log_prob(X) - 0.7**2 / 2)
        kl = torch.distributions.kl_divergence(dist.Normal(m, 0.7), dist.Normal(slope * b, 1.0))
        kl_b = bernoulli(q, b) - bernoulli(torch.tensor(0.3), b)
        loss = loss + p_b * (beta * (kl + kl_b) - log_x)
    return loss.mean()


def in_parts(given: list[Tensor], vectorizes: bool) -> tuple[Program, Program]:
    """Two of ten numbers of a row are seen, each with a switch."""
    logits, _, slope = given

    def model(x: Tensor) -> None:
        seen = pyro.plate("words", 10, subsample=torch.arange(2), dim=-2)
        with pyro.plate("data", len(x), dim=-1), seen:
            b = pyro.sample("b", dist.Bernoulli(0.3))
            if not vectorizes:
                b = torch.stack([b[:, i] for i in range(len(x))], 1)
            pyro.sample("x", dist.Normal(slope * b, 1.0), obs=x.expand(2, -1))

    def guide(x: Tensor) -> None:
        seen = pyro.plate("words", 10, subsample=torch.arange(2), dim=-2)
        with pyro.plate("data", len(x), dim=-1), seen:
            pyro.sample("b", dist.Bernoulli(logits=logits.expand(2, -1)))

    return model, guide


def exact_in_parts(given: list[Tensor], beta: float) -> Tensor:
    logits, _, slope = given
    q, loss = logits.sigmoid(), torch.zeros(3)
    for b in (0.0, 1.0):
        kl = bernoulli(q, b) - bernoulli(torch.tensor(0.3), b)
        each = beta * kl - dist.Normal(slope * b, 1.0).log_prob(X)
        loss = loss + 10 * (q if b else 1 - q) * each
    return loss.mean()


def switch(given: list[Tensor], vectorizes: bool) -> tuple[Program, Program]:
    logits, _, slope = given

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            b = one_by_one(pyro.sample("b", dist.Bernoulli(0.3)), vectorizes)
            pyro.sample("x", dist.Normal(slope * b, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("b", dist.Bernoulli(logits=logits))

    return model, guide


def weighed(given: list[Tensor], vectorizes: bool) -> tuple[Program, Program]:
    model, guide = switch(given, vectorizes)
    return pyro.poutine.scale(model, 3.0), guide


def exact_weighed(given: list[Tensor], beta: float) -> Tensor:
    logits, _, slope = given
    q, loss = logits.sigmoid(), torch.zeros(3)
    for b in (0.0, 1.0):
        log_x, log_p = (
            3 * each
            for each in (dist.Normal(slope * b, 1.0).log_prob(X), bernoulli(torch.tensor(0.3), b))
        )
        loss = loss + (q if b else 1 - q) * (beta * (bernoulli(q, b) - log_p) - log_x)
    return loss.mean()


def exact_bound(num: int) -> Callable[[list[Tensor], float], Tensor]:
    """Minus the importance-weighted bound of `switch`, a sum over all draws."""

    def loss(given: list[Tensor], beta: float) -> Tensor:
        logits, _, slope = given
        q, total = logits.sigmoid(), torch.zeros(3)
        for drawn in itertools.product((0.0, 1.0), repeat=num):
            log_q = [bernoulli(q, b) for b in drawn]
            weights = [
                dist.Normal(slope * b, 1.0).log_prob(X)
                + beta * (bernoulli(torch.tensor(0.3), b) - own)
                for b, own in zip(drawn, log_q, strict=True)
            ]
            bound = torch.stack(weights).logsumexp(0) - torch.tensor(float(num)).log()
            total = total + torch.stack(log_q).sum(0).exp() * bound
        return -total.mean()

    return loss


CASES: list[Any] = [
    (mixed, exact_mixed, ScoreFunctionELBO(num_particles=3)),
    (in_parts, exact_in_parts, ScoreFunctionELBO(num_particles=2)),
    (weighed, exact_weighed, ScoreFunctionELBO(num_particles=2)),
    (switch, exact_bound(2), ImportanceWeightedELBO(num_particles=2)),
    (switch, exact_bound(3), ImportanceWeightedELBO(num_particles=3)),
    (in_parts, exact_in_parts, ImportanceWeightedELBO(num_particles=1)),
]


@pytest.mark.parametrize("vectorizes", [True, False])
@pytest.mark.parametrize(("programs", "exact", "objective"), CASES)
def test_gradients_are_those_of_sums_over_all_values(
    programs: Callable[..., tuple[Program, Program]],
    exact: Callable[[list[Tensor], float], Tensor],
    objective: Objective,
    vectorizes: bool,
) -> None:
    given, beta = leaves(), 0.8
    expected = exact(given, beta)
    slopes = torch.autograd.grad(expected, given, allow_unused=True, materialize_grads=True)
    pair = Pair(*programs(given, vectorizes))
    torch.manual_seed(0)
    found = []
    with pair.scope():
        layout = find_layout(pair, X)
        assert layout.vectorizes == vectorizes
        # Of one draw there is no baseline, so that the noise is large.
        for _ in range(300 if objective.num_particles > 1 else 900):
            loss = objective(pair, layout, X, beta).loss
            of = torch.autograd.grad(loss, given, allow_unused=True, materialize_grads=True)
            found.append(torch.cat([loss.detach().reshape(1), *(each.reshape(-1) for each in of)]))
    each = torch.stack(found).double()
    error = each.std(0) / len(each) ** 0.5
    known = torch.cat([expected.detach().reshape(1), *(slope.reshape(-1) for slope in slopes)])
    assert bool(((each.mean(0) - known).abs() < 4.5 * error + 1e-5).all())
