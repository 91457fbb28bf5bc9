"""Masks around enumerated latents, and subsampled plates inside of a row, against exact answers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

from ppl_vae import (
    annealed_importance_sampling,
    check,
    diagnose,
    evaluate,
    fit,
    fit_em,
    inference_gaps,
)
from ppl_vae.em import GradientSteps
from ppl_vae.em.data import empty_guide
from ppl_vae.em.steps import Draws
from ppl_vae.objectives import ImportanceWeightedELBO, TraceELBO
from ppl_vae.pairs import Pair, PairError, Program, find_layout, sample_rows

INITIAL = torch.tensor([0.5, 0.3, 0.2])
TRANSITION = torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.3, 0.6]])
MEANS = torch.tensor([-2.0, 0.0, 2.0])

# -- a padded hidden Markov model, as Pyro's tutorials write it -------------------------------------------


def padded(x: Tensor, lengths: Tensor) -> None:
    means, z = pyro.param("means", MEANS.clone()), None
    with pyro.plate("data", len(x)):
        for t in pyro.markov(range(x.shape[1])):
            inside: Any = t < lengths
            with poutine.mask(mask=inside):
                probs = INITIAL if z is None else TRANSITION[z]
                z = pyro.sample(f"z_{t}", dist.Categorical(probs), infer={"enumerate": "parallel"})
                pyro.sample(f"x_{t}", dist.Normal(means[z], 1.0), obs=x[:, t])


def nothing(x: Tensor, lengths: Tensor) -> None:
    """The guide of a model whose latents are all summed out."""


def paths(row: Tensor, length: int) -> Tensor:
    """log p(x, z) of all paths of one row."""
    found = []
    for z in itertools.product(range(3), repeat=length):
        total = INITIAL[z[0]].log()
        for a, b in itertools.pairwise(z):
            total = total + TRANSITION[a, b].log()
        total = total + dist.Normal(MEANS[list(z)], 1.0).log_prob(row[:length]).sum()
        found.append(total)
    return torch.stack(found)


def of_rows(reduce: Callable[[Tensor], Tensor], x: Tensor, lengths: Tensor) -> Tensor:
    return torch.stack([reduce(paths(r, n)) for r, n in zip(x, lengths.tolist(), strict=True)])


def sequences() -> tuple[Tensor, Tensor]:
    return 2.0 * torch.randn(7, 5), torch.tensor([5, 1, 2, 3, 4, 5, 1])


def test_masked_enumerated_latents_do_not_add_log_k() -> None:
    rows = sequences()
    exact = of_rows(lambda p: p.logsumexp(0), *rows)
    found = evaluate(padded, nothing, rows, num_samples=3, seed=0)
    torch.testing.assert_close(found.log_likelihood.values, exact, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.elbo.values, exact, atol=1e-5, rtol=0)
    fitted = fit(padded, nothing, rows, max_epochs=1, learning_rate=1e-9, seed=0)
    assert fitted.history[-1]["elbo"] == pytest.approx(float(exact.mean()), abs=1e-5)
    assert fitted.history[-1]["loss"] == pytest.approx(-float(exact.mean()), abs=1e-5)


@pytest.mark.parametrize("hard", [False, True])
def test_em_of_masked_enumerated_latents(hard: bool) -> None:
    rows = sequences()
    exact = of_rows(lambda p: p.amax(0) if hard else p.logsumexp(0), *rows)
    fitted = fit_em(padded, rows, max_iterations=3, hard=hard, seed=0, progress=False)
    assert fitted.history[0]["bound"] == pytest.approx(float(exact.mean()), abs=1e-5)
    bounds = [row["bound"] for row in fitted.history]
    assert bounds == sorted(bounds)


# -- plates inside of a row that see a part only ----------------------------------------------------------

PIXELS = 20


def pixels(subsample_size: int | None, subsample: Tensor | None = None) -> Callable[[Tensor], None]:
    def model(x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(1.0))
        with pyro.plate("rows", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0))
            with pyro.plate("pixels", PIXELS, subsample_size, subsample, dim=-1) as index:
                pyro.sample("x", dist.Normal(z, scale), obs=x[:, index])

    return model


def pixels_guide(x: Tensor) -> None:
    with pyro.plate("rows", len(x), dim=-2):
        loc = x.sum(1, keepdim=True) / (1 + PIXELS)
        pyro.sample("z", dist.Normal(loc, (1 + PIXELS) ** -0.5))


@pytest.mark.parametrize("size", [5, 20])
def test_a_given_part_of_a_row_stands_for_the_whole(size: int) -> None:
    """Rows of equal pixels, so that any part, times N / n, is the whole: log p(x) is exact."""
    x = torch.randn(12, 1).expand(12, PIXELS).contiguous()
    part = torch.arange(size)
    covariance = torch.ones(PIXELS, PIXELS) + torch.eye(PIXELS)
    exact = dist.MultivariateNormal(torch.zeros(PIXELS), covariance).log_prob(x)
    found = evaluate(pixels(None, part), pixels_guide, x, num_samples=10, seed=0)
    torch.testing.assert_close(found.log_likelihood.values, exact, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.elbo.values, exact, atol=1e-4, rtol=0)
    assert found.num_values == PIXELS
    biased = [text for text in found.warnings if "log p(x) is biased" in text]
    assert len(biased) == (size < PIXELS)
    for objective in (TraceELBO(), ImportanceWeightedELBO(num_particles=2)):
        options: dict[str, Any] = {"max_epochs": 1, "learning_rate": 1e-9, "seed": 0}
        fitted = fit(pixels(None, part), pixels_guide, x, objective=objective, **options)
        assert fitted.history[-1]["elbo"] == pytest.approx(float(exact.mean()), abs=1e-4)
        assert -fitted.history[-1]["loss"] == pytest.approx(float(exact.mean()), abs=1e-4)


def test_a_random_part_is_right_on_average_for_the_elbo() -> None:
    x = torch.randn(300, 1) + torch.randn(300, PIXELS)
    covariance = torch.ones(PIXELS, PIXELS) + torch.eye(PIXELS)
    exact = dist.MultivariateNormal(torch.zeros(PIXELS), covariance).log_prob(x)
    found = evaluate(pixels(5), pixels_guide, x, num_samples=2000, seed=0, capture=False)
    # Draws share the pixels of a run of rows and samples: the error is that of a few parts.
    assert found.elbo.mean == pytest.approx(float(exact.mean()), abs=1.0)
    (text,) = (text for text in found.warnings if "biased" in text)
    assert "plate 'pixels' inside of a row is subsampled (5 of 20)" in text
    assert f"warning: {text}" in str(found)


def test_the_importance_weighted_bound_needs_whole_rows() -> None:
    """Over random parts of a row it is no bound, unless it is the ELBO; a given part is allowed (see above)."""
    x = torch.randn(100, 1) + torch.randn(100, PIXELS)
    covariance = torch.ones(PIXELS, PIXELS) + torch.eye(PIXELS)
    exact = float(dist.MultivariateNormal(torch.zeros(PIXELS), covariance).log_prob(x).mean())
    pair = Pair(pixels(5), pixels_guide)
    words = (
        r"'pixels' inside of a row is subsampled \(5 of 20\): the importance-weighted bound needs"
    )
    losses = []
    with pair.scope():
        layout = find_layout(pair, x)
        for _ in range(400):
            objective = ImportanceWeightedELBO(num_particles=1)
            losses.append(float(objective(pair, layout, x, 1.0).loss.detach()))
        with pytest.raises(PairError, match=words):
            ImportanceWeightedELBO(num_particles=2)(pair, layout, x, 1.0)
        # What it would be with many particles: above log p(x).
        parts = [sample_rows(pair, layout, x, 1).log_weights.detach() for _ in range(50)]
    error = torch.tensor(losses).std().item() / 20
    assert -sum(losses) / 400 == pytest.approx(exact, abs=4 * error)
    assert float(torch.cat(parts).logsumexp(0).mean()) - math.log(50) > exact + 1
    (problem,) = check(pair.model, pair.guide, x, objective=ImportanceWeightedELBO()).errors
    assert problem.message.endswith("give the plate no subsample_size, or use TraceELBO")
    with pytest.raises(PairError, match=words):
        fit(pair.model, pair.guide, x, objective=ImportanceWeightedELBO(), max_epochs=1)
    assert check(pixels(None), pixels_guide, x, objective=ImportanceWeightedELBO())


def test_gaps_say_that_log_p_is_biased() -> None:
    x = torch.randn(3, PIXELS)
    gaps = inference_gaps(pixels(5), pixels_guide, x, num_samples=10, max_steps=5, seed=0)
    assert any("is subsampled (5 of 20): log p(x) is biased" in text for text in gaps.warnings)


def test_chains_need_whole_rows() -> None:
    with pytest.raises(
        PairError, match=r"plate 'pixels' inside of a row is subsampled \(5 of 20\)"
    ):
        annealed_importance_sampling(
            pixels(5), pixels_guide, torch.randn(3, PIXELS), num_chains=2, num_steps=2
        )


def test_a_sum_over_latents_needs_whole_rows() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("rows", len(x), dim=-2):
            probs = torch.full((len(x), 1, 3), 1 / 3)
            z = pyro.sample("z", dist.Categorical(probs), infer={"enumerate": "parallel"})
            means = pyro.param("means", MEANS.clone())
            with pyro.plate("pixels", PIXELS, subsample=torch.arange(5), dim=-1) as index:
                pyro.sample("x", dist.Normal(means[z], 1.0), obs=x[:, index])

    x = torch.randn(4, PIXELS)
    for run in (
        lambda: evaluate(model, lambda x: None, x, num_samples=2),
        lambda: fit_em(model, x, m_step=GradientSteps(), max_iterations=1, progress=False),
    ):
        with pytest.raises(PairError, match="a latent of the model is summed out"):
            run()


class OfPixels(nn.Module):
    """z ~ N(loc, 1), x_t ~ N(z + shift, 1) for each pixel t, of which the model may see a part only."""

    def __init__(self, part: Tensor | None) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.3))
        self.shift = nn.Parameter(torch.tensor(0.5))
        self.part = part

    def forward(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(self.loc, 1.0))
            with pyro.plate("pixels", x.shape[1], subsample=self.part, dim=-1) as index:
                pyro.sample("x", dist.Normal(z + self.shift, 1.0), obs=x[:, index])

    def posterior(self, x: Tensor) -> Any:
        n = x.shape[1] + 1
        total = (x - self.shift).sum(1, keepdim=True) + self.loc
        return dist.Normal(total / n, n**-0.5)

    def log_evidence(self, x: Tensor) -> Tensor:
        covariance = torch.eye(x.shape[1]) + 1
        loc = (self.loc + self.shift).expand(x.shape[1])
        log_p: Tensor = dist.MultivariateNormal(loc, covariance).log_prob(x)
        return log_p


@pytest.mark.parametrize("part", [None, torch.arange(5)])
def test_em_by_draws_counts_each_pixel_of_a_row(part: Tensor | None) -> None:
    """The gradient at given draws, in closed form. All pixels of a row are the same, so a part shows all."""
    x = torch.randn(4, 1).expand(-1, PIXELS)
    model = OfPixels(part)
    steps = Draws(Pair(model, empty_guide), GradientSteps(), x, num_samples=3)
    q = torch.randn(3, 4, 1)
    steps.expected_log_joint(x, q, 1.0).backward()
    of_shift = PIXELS * (x[:, :1] - q - 0.5).mean(0).sum()
    torch.testing.assert_close(model.loc.grad, (q - 0.3).mean(0).sum())
    torch.testing.assert_close(model.shift.grad, of_shift)


def test_masked_latents_are_not_counted_as_active() -> None:
    """The second latent is there in every third row, where it is used; in the others it is the prior's."""

    def model(x: Tensor, there: Tensor) -> None:
        mask: Any = there
        with pyro.plate("rows", len(x)):
            with poutine.mask(mask=mask):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            unseen = pyro.sample("unused", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z * there + 0 * unseen, 0.5), obs=x)

    def guide(x: Tensor, there: Tensor) -> None:
        mask: Any = there
        with pyro.plate("rows", len(x)):
            with poutine.mask(mask=mask):
                loc = torch.where(
                    there, 0.8 * x, 3.0 * torch.arange(len(x))
                )  # wild where it is masked
                pyro.sample("z", dist.Normal(loc, 0.2**0.5))
            pyro.sample("unused", dist.Normal(torch.zeros(len(x)), 1.0))

    there = torch.arange(900) % 3 == 0
    x = 1.25**0.5 * torch.randn(900)
    found = diagnose(model, guide, (x, there), seed=0)
    assert found.names == ("z", "unused")
    assert float(found.mean_variance[0]) == pytest.approx(0.8, rel=0.15)
    assert found.active.tolist() == [True, False]
    assert found.collapsed.tolist() == [False, True]
    assert float(found.kl[0]) == pytest.approx(0.5 * torch.tensor(5.0).log().item(), rel=0.1)


def test_dimensions_are_those_of_the_rows_that_have_them() -> None:
    """Every second row has z | x ~ N(x / 2, 1 / 2) and log 2 / 2 nats; the others carry none."""

    def model(x: Tensor, there: Any) -> None:
        with pyro.plate("rows", len(x)):
            with poutine.mask(mask=there):
                z = pyro.sample("z", dist.Normal(0 * x, 1.0))
            pyro.sample("x", dist.Normal(torch.where(there, z, 0 * z), 1.0), obs=x)

    def guide(x: Tensor, there: Any) -> None:
        with pyro.plate("rows", len(x)), poutine.mask(mask=there):
            loc = torch.where(there, x / 2, 50 + 20 * x)  # wild where it is masked
            pyro.sample("z", dist.Normal(loc, 0.5**0.5))

    there = torch.arange(2000) % 2 == 0
    x = torch.where(there, 2**0.5, 1.0) * torch.randn(2000)
    kl = 0.5 * (0.5 + x[there].square() / 4 - 1 + math.log(2))
    for order in (torch.arange(2000), there.int().argsort(stable=True)):  # absent ones first
        found = diagnose(model, guide, (x[order], there[order]), seed=0)
        assert float(found.kl) == pytest.approx(float(kl.mean()), rel=1e-4)
        assert float(found.mean_variance) == pytest.approx(float((x[there] / 2).var()), rel=1e-4)
        assert found.active.tolist() == [True]
        half = 0.25 * math.log(2)
        assert found.mutual_information.mean == pytest.approx(half, abs=0.06)
        rate = found.mutual_information.mean + found.marginal_kl.mean
        assert rate == pytest.approx(float(kl.mean()) / 2, abs=0.06)


def test_a_mask_inside_of_a_distribution_is_seen() -> None:
    there = torch.arange(300) % 2 == 0
    seen: Any = there

    def model(x: Tensor, there: Tensor) -> None:
        mask: Any = there
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand((len(x),)).mask(mask))
            pyro.sample("x", dist.Normal(torch.where(there, z, 0.0), 0.5), obs=x)

    def guide(x: Tensor, there: Tensor) -> None:
        mask: Any = there
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(0.8 * x, 0.2**0.5).mask(mask))

    found = diagnose(model, guide, (torch.randn(300), seen), seed=0)
    assert any("at least 150 of 300" in note for note in found.notes)


def test_a_penalty_outside_of_the_plate_belongs_to_the_loss_alone() -> None:
    """x ~ N(0, 1 + w^2) with the exact posterior as guide, and a penalty w^2 / 2 on the weight."""

    def model(x: Tensor) -> None:
        w = pyro.param("w", torch.tensor(1.5))
        pyro.factor("penalty", -0.5 * w**2)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(w * z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(1.5 * x / 3.25, 3.25**-0.5))

    x = torch.randn(60)
    exact = dist.Normal(0.0, 3.25**0.5).log_prob(x)
    found = evaluate(model, guide, x, num_samples=10, seed=0)
    torch.testing.assert_close(found.log_likelihood.values, exact, atol=1e-5, rtol=0)
    options: dict[str, Any] = {"max_epochs": 1, "learning_rate": 1e-9, "seed": 0}
    (row,) = fit(model, guide, x, objective=TraceELBO(), **options).history
    assert row["elbo"] == pytest.approx(float(exact.mean()), abs=1e-4)
    assert row["loss"] == pytest.approx(-float(exact.mean()) + 0.5 * 1.5**2 / 60, abs=1e-4)


@pytest.mark.parametrize("validation", [True, False])
def test_active_units_of_a_training_know_masks_and_the_priors_scale(validation: bool) -> None:
    """Of three used dimensions one has a small scale, one is masked in all rows; a fourth is unused."""
    prior = torch.tensor([1.0, 0.05, 1.0, 1.0])
    there: Any = torch.tensor([True, True, False, True])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2), pyro.plate("parts", 4, dim=-1):
            with poutine.mask(mask=there):
                z = pyro.sample("z", dist.Normal(0.0, prior))
            with poutine.mask(mask=there & torch.tensor([True, True, True, False])):
                pyro.sample("x", dist.Normal(z, 0.2 * prior), obs=x)

    def guide(x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(0.2), dist.constraints.positive)
        used = torch.tensor([1.0, 1.0, 1.0, 0.0])
        rows, parts = pyro.plate("data", len(x), dim=-2), pyro.plate("parts", 4, dim=-1)
        with rows, parts, poutine.mask(mask=there):
            pyro.sample("z", dist.Normal(used * x, scale * prior))

    x = prior * torch.randn(100, 4)
    held_out = x[:50] if validation else None
    options: dict[str, Any] = {"max_epochs": 1, "batch_size": 50, "seed": 0, "capture": False}
    fitted = fit(model, guide, x, validation=held_out, **options)
    assert fitted.history[-1]["active_units"] == 2
    if not validation:  # the pair is the same
        assert diagnose(model, guide, x, seed=0).active_units == 2


# -- numbers that count for bits per dimension ------------------------------------------------------------


def bits(log_p: Tensor, numbers: int) -> float:
    return float(-log_p.double().sum()) / numbers / math.log(2)


def latent_guide(x: Tensor, there: Tensor) -> None:
    seen = there.sum(-1)
    with pyro.plate("data", len(x)):
        loc = (x * there).sum(-1) / (1 + seen)
        pyro.sample("z", dist.Normal(loc, (1.0 + seen) ** -0.5))  # the exact posterior


def masked_sites(x: Tensor, there: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        for t in range(x.shape[1]):
            seen: Any = there[:, t]
            with poutine.mask(mask=seen):
                pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x[:, t])


def mask_inside(x: Tensor, there: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        each = dist.Normal(z.unsqueeze(-1), 1.0).expand(z.shape + x.shape[1:])
        pyro.sample("x", each.mask(there).to_event(1), obs=x)


def mask_in_a_plate(x: Tensor, there: Tensor) -> None:
    seen: Any = there.T
    rows = pyro.plate("data", len(x), dim=-1)
    with rows:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("values", x.shape[1], dim=-2), rows, poutine.mask(mask=seen):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x.T)


def exact_log_p(x: Tensor, there: Tensor) -> Tensor:
    found = []
    for row, seen in zip(x, there, strict=True):
        k = int(seen.sum())
        normal = dist.MultivariateNormal(torch.zeros(k), torch.ones(k, k) + torch.eye(k))
        found.append(normal.log_prob(row[seen]) if k else torch.zeros(()))
    return torch.stack(found)


MASKED = [masked_sites, mask_inside, mask_in_a_plate]


@pytest.mark.parametrize("model", MASKED)
@pytest.mark.parametrize("capture", [False, True])
def test_masked_numbers_do_not_count_as_dimensions(
    model: Callable[[Tensor, Tensor], None], capture: bool
) -> None:
    """Half of the numbers masked: the bits per dimension of the pair that does not have them."""
    x = torch.randn(150, 6)
    there = (torch.arange(6) % 2 == 0).expand(150, 6).contiguous()
    found = evaluate(model, latent_guide, (x, there), num_samples=4, seed=0, capture=capture)
    exact = exact_log_p(x, there)
    torch.testing.assert_close(found.log_likelihood.values, exact, atol=1e-4, rtol=0)
    assert found.num_values == 3
    without = (x[:, ::2].contiguous(), torch.ones(150, 3, dtype=torch.bool))
    same = evaluate(model, latent_guide, without, num_samples=4, seed=0)
    assert found.bits_per_dim.mean == pytest.approx(same.bits_per_dim.mean, rel=1e-5)
    assert found.bits_per_dim.mean == pytest.approx(bits(exact, 3 * 150), rel=1e-5)


@pytest.mark.parametrize("model", MASKED)
def test_rows_count_by_their_numbers(model: Callable[[Tensor, Tensor], None]) -> None:
    """Rows of 0 to 6 numbers, and a random half of each: the mean is all bits over all numbers."""
    x = torch.randn(130, 6)
    there = (torch.arange(6) < torch.arange(130).unsqueeze(1) % 7) & (torch.rand(130, 6) < 0.8)
    exact, sizes = exact_log_p(x, there), there.sum(1)
    found = evaluate(model, latent_guide, (x, there), num_samples=4, seed=0)
    annealed = annealed_importance_sampling(
        model, latent_guide, (x, there), num_chains=2, num_steps=1, seed=0
    )
    for result in (found, annealed):
        assert isinstance(result.num_values, Tensor)
        assert result.num_values.tolist() == sizes.tolist()
        per_row = result.bits_per_dim
        assert per_row.mean == pytest.approx(bits(exact, int(sizes.sum())), rel=1e-4)
        assert torch.equal(per_row.values.isnan(), sizes == 0)
        own = (-exact / sizes / math.log(2))[sizes > 0]
        torch.testing.assert_close(per_row.values[sizes > 0].float(), own, atol=1e-4, rtol=1e-4)
        assert result.rows()["num_values"].tolist() == sizes.tolist()
    # The standard error of the ratio: the spread of its estimates from resampled rows.
    rows = torch.randint(130, (4000, 130))
    ratios = -exact[rows].sum(1) / sizes[rows].sum(1) / math.log(2)
    assert found.bits_per_dim.standard_error == pytest.approx(float(ratios.std()), rel=0.1)


@pytest.mark.parametrize("capture", [False, True])
def test_batches_of_several_lengths_count_by_their_numbers(capture: bool) -> None:
    """Of the same sites, of other sites, and with masks: a hidden Markov model of ragged rows."""
    batches = [
        (2.0 * torch.randn(n, steps), torch.randint(1, steps + 1, (n,)))
        for n, steps in ((40, 5), (7, 2), (80, 3))
    ]
    exact = torch.cat([of_rows(lambda p: p.logsumexp(0), *batch) for batch in batches])
    lengths = torch.cat([batch[1] for batch in batches])
    found = evaluate(padded, nothing, batches, num_samples=3, seed=0, capture=capture)
    assert isinstance(found.num_values, Tensor)
    assert found.num_values.tolist() == lengths.tolist()
    assert found.bits_per_dim.mean == pytest.approx(bits(exact, int(lengths.sum())), rel=1e-5)

    whole = [(x, torch.ones_like(x, dtype=torch.bool)) for x, _ in batches]
    numbers = torch.cat([torch.full((len(x),), x.shape[1]) for x, _ in batches])
    log_p = torch.cat([exact_log_p(*batch) for batch in whole])

    def plain(x: Tensor, there: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            mean = z.unsqueeze(-1).expand(z.shape + x.shape[1:])
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    same = evaluate(plain, latent_guide, whole, num_samples=3, seed=0, capture=capture)
    assert isinstance(same.num_values, Tensor)
    assert same.num_values.tolist() == numbers.tolist()
    assert same.bits_per_dim.mean == pytest.approx(bits(log_p, int(numbers.sum())), rel=1e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("expanded", [False, True])
def test_a_number_that_a_plate_broadcasts_counts_as_often_as_it_is_scored(
    expanded: bool, masked: bool
) -> None:
    """One number per row that three sensors see, each with a density of its own."""
    x = torch.randn(40)

    def sensors(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            there: Any = poutine.mask(mask=torch.ones(3, 1, dtype=torch.bool))  # type: ignore[call-overload]
            with pyro.plate("sensors", 3, dim=-2), there if masked else nullcontext():
                value = x.expand(3, len(x)) if expanded else x
                pyro.sample("x", dist.Normal(0 * z, 1.0), obs=value)

    exact = 3 * dist.Normal(0.0, 1.0).log_prob(x)
    found = evaluate(sensors, of_noise, x, num_samples=4, seed=0)
    assert found.num_values == 3
    assert found.bits_per_dim.mean == pytest.approx(bits(exact, 3 * 40), rel=1e-5)


def of_noise(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))


@pytest.mark.parametrize("alone", [False, True])
def test_a_factor_has_no_bits_per_dimension(alone: bool) -> None:
    """The factor may score any number of numbers: there is nothing to divide by."""
    x = torch.randn(40, 18)

    def by_factor(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            own = dist.Normal(0 * z[..., None], 1.0).expand((*z.shape, 18)).to_event(1)
            pyro.factor("likelihood", own.log_prob(x))
            if not alone:
                pyro.sample("first", dist.Normal(0 * z, 1.0), obs=x[:, 0])

    found = evaluate(by_factor, of_noise, x, num_samples=4, seed=0)
    annealed = annealed_importance_sampling(
        by_factor, of_noise, x, num_chains=2, num_steps=1, seed=0
    )
    for result in (found, annealed):
        assert result.num_values == 0
        assert result.log_likelihood.values.isfinite().all()
        assert result.bits_per_dim.values.isnan().all()
        line = dict(result.lines())["bits per dimension"]
        assert line.startswith("not defined, because a pyro.factor")
        assert str(result.bits_per_dim) == line


def test_rows_without_masks_are_counted_once() -> None:
    """One run of the programs for the first chunk; with masks, one for each chunk."""
    runs = 0

    def counting(x: Tensor, there: Tensor) -> None:
        nonlocal runs
        runs += 1
        mask_inside(x, there) if masked else with_all(x)

    def with_all(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            mean = z.unsqueeze(-1).expand(z.shape + x.shape[1:])
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    found = {}
    for masked in (False, True):
        for chunks in (2, 5):
            x, runs = torch.randn(64 * chunks, 3), 0
            rows = (x, torch.ones_like(x, dtype=torch.bool))
            evaluate(counting, latent_guide, rows, num_samples=2, seed=0, capture=False)
            found[masked, chunks] = runs
    assert found[False, 5] - found[False, 2] == 3
    assert found[True, 5] - found[True, 2] == 6


@pytest.mark.parametrize("named", [True, False])
def test_a_sequential_plate_inside_of_a_row_that_is_subsampled(named: bool) -> None:
    """`for i in pyro.plate(...)`: five of 20 numbers stand for all, as Pyro's ELBO has it."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            for k, i in enumerate(pyro.plate("parts", 20, subsample_size=5)):
                pyro.sample(f"x_{i if named else k}", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(0.7), dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, scale))

    x = torch.randn(6)
    if named:
        with pytest.raises(PairError, match="other sites each time they run"):
            evaluate(model, guide, x, num_samples=50, seed=0)
        return
    found = evaluate(model, guide, x, num_samples=4000, seed=0)
    q = dist.Normal(x.double() / 2, 0.7)
    spread = (x.double() / 2).square() + 0.49
    likelihood = -0.5 * math.log(2 * math.pi) - 0.5 * spread
    truth = 20 * likelihood - 0.5 * math.log(2 * math.pi) - 0.5 * spread + q.entropy()
    torch.testing.assert_close(found.elbo.values.double(), truth, atol=0.5, rtol=0)
    assert any("'parts' inside of a row is subsampled (5 of 20)" in text for text in found.warnings)
    assert fit(model, guide, x, max_epochs=40, batch_size=6, learning_rate=1e-6).warnings == ()


# -- obs_mask ----------------------------------------------------------------------------------------------

ROWS = torch.linspace(-2, 3, 6), torch.tensor([True, True, False, True, False, True])


def partly_seen(x: Tensor, seen: Any, how: str) -> None:
    """z ~ N(0, 1), x ~ N(z, 1), which is missing in two rows."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        fn = dist.Normal(z, 1.0)
        if how == "obs_mask":
            pyro.sample("x", fn, obs=x, obs_mask=seen)
        elif how == "mask":
            pyro.sample("x", fn.mask(seen), obs=x)
        else:
            with poutine.mask(mask=seen):
                pyro.sample("x", fn, obs=x)


def by_obs_mask(x: Tensor, seen: Tensor) -> None:
    partly_seen(x, seen, "obs_mask")


def half(x: Tensor, seen: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.5))


def half_and_the_missing(x: Tensor, seen: Any) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x / 2, 0.5))
        with poutine.mask(mask=~seen):
            pyro.sample("x_unobserved", dist.Normal(z, 1.0))


def mixture_by_obs_mask(x: Tensor, seen: Any) -> None:
    means = pyro.param("means", torch.tensor([-1.0, 1.0]))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(means[z], 1.0), obs=x, obs_mask=seen)


OBS_MASKED: dict[str, Callable[[tuple[Tensor, Tensor]], Any]] = {
    "check": lambda rows: check(by_obs_mask, half, rows).raise_errors(),
    "fit": lambda rows: fit(by_obs_mask, half, rows, max_epochs=1, seed=0),
    "evaluate": lambda rows: evaluate(by_obs_mask, half, rows, num_samples=2),
    "diagnose": lambda rows: diagnose(by_obs_mask, half, rows),
    "an autoguide, which has no mask": lambda rows: check(
        by_obs_mask, AutoNormal(by_obs_mask), rows
    ).raise_errors(),
    "fit_em": lambda rows: fit_em(mixture_by_obs_mask, rows),
}


@pytest.mark.parametrize("call", OBS_MASKED)
def test_a_latent_of_obs_mask_is_explained(call: str) -> None:
    with pytest.raises(PairError, match="'x_unobserved'") as caught:
        OBS_MASKED[call](ROWS)
    text = str(caught.value)
    assert "obs_mask makes what is missing of 'x' a latent of the model" in text
    assert "pyro.sample('x', fn.mask(mask), obs=x)" in text
    assert "poutine.mask(mask=mask)" in text
    assert 'infer={"enumerate"' not in text


def test_what_is_said_of_obs_mask_works() -> None:
    """A mask leaves the numbers out; so does the guide that draws them as the model does: log p - log q = 0."""
    x, seen = ROWS
    pairs: list[tuple[Program, Program]] = [(by_obs_mask, half_and_the_missing)]
    pairs += [(partial(partly_seen, how=how), half) for how in ("mask", "poutine")]
    # log N(x; z, 1) in expectation where x is seen, and the KL of N(x / 2, 1 / 4) and N(0, 1) everywhere
    distortion = torch.where(seen, 0.5 * (math.log(2 * math.pi) + (x / 2) ** 2 + 0.25), 0.0)
    rate = 0.5 * ((x / 2) ** 2 + 0.25 - 1 - math.log(0.25))
    for model, guide in pairs:
        assert check(model, guide, ROWS).ok
        found = evaluate(model, guide, ROWS, num_samples=4000, seed=0, method="guide")
        torch.testing.assert_close(found.distortion.values, distortion, atol=0.1, rtol=0)
        torch.testing.assert_close(found.rate.values, rate, atol=0.1, rtol=0)


def test_a_latent_that_is_only_called_so_is_none_of_obs_mask() -> None:
    def model(x: Tensor, seen: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("x_unobserved", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    text = str(check(model, half, ROWS))
    assert "'x_unobserved' is not sampled by the guide, which samples 'z': give the site" in text
