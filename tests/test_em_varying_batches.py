"""`fit_em` with enumeration where batches differ in their sites, against exact EM written out."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor, nn

from ppl_vae import fit_em
from ppl_vae.em import GradientSteps
from ppl_vae.pairs import PairError

Batch = tuple[Tensor, ...]
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
START = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)
RATE = 0.5


def steps_of(count: int) -> GradientSteps:
    return GradientSteps(count, learning_rate=RATE, optimizer=torch.optim.SGD)


# -- labels ----------------------------------------------------------------------------------------------


class Mixture(nn.Module):
    """Three normals of variance 1, whose centers are learned; y may be given."""

    def __init__(self, by_value: bool = False, unmarked: bool = False) -> None:
        super().__init__()
        self.unmarked = unmarked
        self.centers = nn.Parameter(START.clone())
        self.by_value = by_value

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        if self.by_value and y is not None and bool((y < 0).all()):  # of the same shapes
            y = None
        with pyro.plate("data", len(x)):
            if self.unmarked and y is None:
                pyro.sample("u", dist.Normal(0.0, 1.0))
            y = pyro.sample("y", dist.Categorical(WEIGHTS), obs=y, infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(self.centers[y], 1.0), obs=x)


def joint(x: Tensor, centers: Tensor) -> Tensor:
    """log p(x, y) of each y, `(n, 3)`."""
    found: Tensor = WEIGHTS.log() - 0.5 * (x.unsqueeze(1) - centers).square()
    return found - 0.5 * math.log(2 * math.pi)


def exact_em(parts: list[Batch], count: int, iterations: int, hard: bool) -> tuple[Tensor, Tensor]:
    """Centers, and bound of each iteration, for gradient steps of EM whose q is computed by Bayes' rule."""
    x = torch.cat([part[0] for part in parts])
    labels = torch.cat(
        [part[1] if len(part) > 1 else torch.full((len(part[0]),), -1) for part in parts]
    )
    centers, bounds = START.clone(), []
    for _ in range(iterations + 1):
        table = joint(x, centers)
        given = labels >= 0
        of_label = table.gather(1, labels.clamp(min=0).unsqueeze(1))[:, 0]
        free = table.max(1).values if hard else table.logsumexp(1)
        bounds.append(torch.where(given, of_label, free).mean())
        q = torch.softmax(table, 1)
        if hard:
            q = nn.functional.one_hot(table.argmax(1), 3).double()
        q = torch.where(given.unsqueeze(1), nn.functional.one_hot(labels.clamp(min=0), 3), q)
        if len(bounds) <= iterations:
            for _ in range(count):
                centers = centers + RATE * (q * (x.unsqueeze(1) - centers)).mean(0)
    return centers, torch.stack(bounds)


def labelled_in_turns(first: int, by_value: bool) -> list[Batch]:
    """Labelled and unlabelled batches of different sizes."""
    batches: list[Batch] = []
    for i, n in enumerate((6, 9, 5, 7)):
        x = 2 * torch.randn(n, dtype=torch.float64)
        unlabelled: Batch = (x, torch.full((n,), -1)) if by_value else (x,)
        batches.append((x, torch.randint(0, 3, (n,))) if i % 2 == first else unlabelled)
    return batches


@pytest.mark.parametrize("first", [0, 1], ids=["labelled first", "unlabelled first"])
@pytest.mark.parametrize("by_value", [False, True])
@pytest.mark.parametrize(("hard", "count"), [(False, 1), (False, 4), (True, 4)])
def test_em_of_labelled_and_unlabelled_batches(
    first: int, by_value: bool, hard: bool, count: int
) -> None:
    batches = labelled_in_turns(first, by_value)
    model = Mixture(by_value)
    found = fit_em(
        model,
        batches,
        hard=hard,
        m_step=steps_of(count),
        max_iterations=6,
        tolerance=0.0,
        seed=0,
    )
    centers, bounds = exact_em(batches, count, 6, hard)
    assert [row["bound"] for row in found.history] == pytest.approx(bounds.tolist(), abs=1e-9)
    torch.testing.assert_close(model.centers.detach(), centers, atol=1e-9, rtol=0)
    assert float((centers - START).abs().max()) > 0.1


def test_em_of_labels_alone() -> None:
    """Nothing is latent, so that the M step is maximum likelihood; but it is not known before all rows are."""
    batches: list[Batch] = [part for part in labelled_in_turns(0, False) if len(part) == 2]
    model = Mixture()
    fit_em(model, batches, m_step=steps_of(1), max_iterations=3, tolerance=0.0, seed=0)
    torch.testing.assert_close(model.centers.detach(), exact_em(batches, 1, 3, False)[0])


# -- sequences: each batch is padded to its own longest one ------------------------------------------------


class Chain(nn.Module):
    """A hidden Markov chain of two states."""

    def __init__(self) -> None:
        super().__init__()
        self.stay = nn.Parameter(torch.tensor(0.8, dtype=torch.float64).logit())
        self.centers = nn.Parameter(torch.tensor([-1.0, 1.5], dtype=torch.float64))

    def forward(self, x: Tensor, lengths: Tensor) -> None:
        stay = self.stay.sigmoid()
        rows = torch.stack([torch.stack([stay, 1 - stay]), torch.stack([1 - stay, stay])])
        z: Any = 0
        with pyro.plate("data", len(x)):
            for t in range(x.shape[1]):
                inside: Any = t < lengths
                with poutine.mask(mask=inside):
                    z = pyro.sample(
                        f"z_{t}", dist.Categorical(rows[z]), infer={"enumerate": "parallel"}
                    )
                    pyro.sample(f"x_{t}", dist.Normal(self.centers[z], 1.0), obs=x[:, t])


def log_p_of_paths(model: Chain, x: Tensor) -> Tensor:
    """log p(x) of one sequence: the sum over all 2^T paths, written out."""
    stay, paths = model.stay.sigmoid(), []
    for path in itertools.product(range(2), repeat=len(x)):
        moves = [stay if a == b else 1 - stay for a, b in itertools.pairwise((0, *path))]
        density = dist.Normal(model.centers[list(path)], 1.0).log_prob(x).sum()
        paths.append(torch.stack(moves).log().sum() + density)
    return torch.stack(paths).logsumexp(0)


@pytest.mark.parametrize("longest", [(2, 5, 3), (5, 2, 5), (1, 4, 1)])
def test_em_of_sequences_of_other_lengths(longest: tuple[int, ...]) -> None:
    """One gradient step per M step is a gradient step on log p(x) (Fisher's identity)."""
    batches: list[Batch] = []
    for steps in longest:
        lengths = torch.randint(1, steps + 1, (6,))
        lengths[0] = steps
        batches.append((2 * torch.randn(6, steps, dtype=torch.float64), lengths))
    model, exact = Chain(), Chain()
    found = fit_em(model, batches, m_step=steps_of(1), max_iterations=4, tolerance=0.0, seed=0)
    bounds = []
    optimizer = torch.optim.SGD(exact.parameters(), lr=RATE)
    for iteration in range(5):
        rows = [
            log_p_of_paths(exact, row[:length])
            for x, lengths in batches
            for row, length in zip(x, lengths.tolist(), strict=True)
        ]
        bounds.append(float(torch.stack(rows).mean().detach()))
        if iteration < 4:
            optimizer.zero_grad()
            (-torch.stack(rows).mean()).backward()
            optimizer.step()
    assert [row["bound"] for row in found.history] == pytest.approx(bounds, abs=1e-9)
    torch.testing.assert_close(model.centers, exact.centers, atol=1e-9, rtol=0)
    torch.testing.assert_close(model.stay, exact.stay, atol=1e-9, rtol=0)
    assert bounds[-1] > bounds[0]


def test_a_latent_of_a_later_kind_that_cannot_be_summed_out_is_named() -> None:
    batches = labelled_in_turns(0, False)
    for order in (batches, batches[::-1]):
        with pytest.raises(PairError, match="'u'"):
            fit_em(Mixture(unmarked=True), order, m_step=steps_of(1), max_iterations=2, seed=0)
