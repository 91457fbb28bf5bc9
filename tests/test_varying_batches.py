"""Batches whose sites, roles and plates differ: lengths and labels that come and go, against exact answers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor, nn

from ppl_vae import (
    annealed_importance_sampling,
    check,
    diagnose,
    evaluate,
    fit,
    fit_em,
    inference_gaps,
    to_arviz,
)
from ppl_vae.checks import PairWarning
from ppl_vae.objectives import (
    ELBO,
    EnumELBO,
    ImportanceWeightedELBO,
    MeanFieldELBO,
    Objective,
    Resolved,
    TraceELBO,
)
from ppl_vae.pairs import Layout, Pair, PairError, trace_pair
from ppl_vae.pairs.layouts import Layouts

Batch = tuple[Tensor, ...]
KEPT, NOISE = 0.8, 0.5


def masked(there: Tensor) -> Any:
    """The rows that have what follows."""
    mask: Any = there
    return poutine.mask(mask=mask)


# -- sequences: each batch is padded to its own longest one ----------------------------------------------


def chain(x: Tensor, lengths: Tensor) -> None:
    """z_t ~ N(0.8 z_{t-1}, 1), x_t ~ N(z_t, 0.5)."""
    kept = pyro.param("kept", torch.tensor(KEPT))
    z = torch.zeros(len(x))
    with pyro.plate("rows", len(x)):
        for t in range(x.shape[1]):
            with masked(t < lengths):
                z = pyro.sample(f"z_{t}", dist.Normal(kept * z, 1.0))
                pyro.sample(f"x_{t}", dist.Normal(z, NOISE), obs=x[:, t])


def smoother(x: Tensor, lengths: Tensor) -> None:
    """p(z | x) exactly: the messages from the future, then each z given the one before."""
    precision, linear, messages = torch.zeros(len(x)), torch.zeros(len(x)), []
    for t in reversed(range(x.shape[1])):
        inside = (t < lengths).float()
        precision, linear = (
            inside / NOISE**2 + KEPT**2 * precision / (1 + precision),
            inside * x[:, t] / NOISE**2 + KEPT * linear / (1 + precision),
        )
        messages.append((precision, linear))
    z = torch.zeros(len(x))
    with pyro.plate("rows", len(x)):
        for t, (precision, linear) in enumerate(reversed(messages)):
            with masked(t < lengths):
                scale = (1 + precision) ** -0.5
                z = pyro.sample(f"z_{t}", dist.Normal((KEPT * z + linear) * scale**2, scale))


def trimmed(program: Callable[..., None]) -> Callable[[Tensor, Tensor], None]:
    """Cuts a batch to its longest sequence: the sites depend on values, not on shapes."""
    return lambda x, lengths: program(x[:, : int(lengths.max())], lengths)


def covariance(steps: int, kept: float | Tensor = KEPT) -> Tensor:
    """That of x_0, ..., x_{T-1}."""
    index = torch.arange(steps).double()
    lags = index.unsqueeze(1) - index
    powers = torch.where(lags >= 0, kept ** lags.clamp(min=0.0), 0.0)
    return powers @ powers.T + NOISE**2 * torch.eye(steps).double()


def log_p(x: Tensor, lengths: Tensor, kept: float | Tensor = KEPT) -> Tensor:
    found = []
    for row, length in zip(x.double(), lengths.tolist(), strict=True):
        mean = torch.zeros(length).double()
        normal = torch.distributions.MultivariateNormal(mean, covariance(length, kept))
        found.append(normal.log_prob(row[:length]))
    return torch.stack(found)


def sequences(longest: int, n: int = 10) -> Batch:
    lengths = torch.randint(1, longest + 1, (n,))
    lengths[0] = longest
    inside = torch.arange(longest) < lengths.unsqueeze(-1)
    return 1.5 * torch.randn(n, longest) * inside, lengths


ORDERS = [(4, 7), (7, 4), (3, 1, 5)]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("capture", [True, False])
def test_log_p_of_sequences_of_all_lengths(order: tuple[int, ...], capture: bool) -> None:
    batches = [sequences(longest) for longest in order]
    exact = torch.cat([log_p(*batch) for batch in batches])
    found = evaluate(chain, smoother, batches, num_samples=20, seed=0, capture=capture)
    torch.testing.assert_close(found.log_likelihood.values.double(), exact, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.elbo.values.double(), exact, atol=1e-4, rtol=0)


@pytest.mark.parametrize("descending", [False, True])
def test_sites_that_depend_on_values_in_memory(descending: bool) -> None:
    x, lengths = sequences(7, 200)
    order = lengths.argsort(descending=descending)
    rows = x[order], lengths[order]
    found = evaluate(trimmed(chain), trimmed(smoother), rows, num_samples=20, seed=0)
    torch.testing.assert_close(
        found.log_likelihood.values.double(), log_p(*rows), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "objective",
    [
        ELBO(),
        pytest.param(TraceELBO(), marks=pytest.mark.slow),
        pytest.param(TraceELBO(num_particles=3), marks=pytest.mark.slow),
        ImportanceWeightedELBO(),
    ],
    ids=repr,
)
def test_training_sees_every_step(order: tuple[int, ...], objective: Objective) -> None:
    """The guide is exact: each sample's loss is -log p(x), and a learning rate of 1e-9 moves nothing."""
    batches = [sequences(longest) for longest in order]
    exact = float(torch.cat([log_p(*batch) for batch in batches]).mean())
    options: dict[str, Any] = {"max_epochs": 2, "learning_rate": 1e-9, "seed": 0}
    fitted = fit(chain, smoother, batches, objective=objective, validation=batches, **options)
    for row in fitted.history:
        assert row["elbo"] == pytest.approx(exact, abs=1e-4)
        assert row["validation_elbo"] == pytest.approx(exact, abs=1e-4)
        if not isinstance(
            objective, ELBO
        ):  # its loss has the analytic KL in place of the sampled one
            assert -row["loss"] == pytest.approx(exact, abs=1e-4)


def test_gradients_of_batches_in_turns_are_those_of_log_p() -> None:
    """With the exact posterior as guide, the ELBO has on average the gradient of log p(x)."""
    batches, found = [sequences(4), sequences(7), sequences(4)], []

    class Watched(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            found.append(-float(self.param_groups[0]["params"][0].grad))

    objective = TraceELBO(num_particles=2000)
    fit(chain, smoother, batches, objective=objective, max_epochs=1, seed=0, optimizer=Watched)
    for (x, lengths), got in zip(batches, found, strict=True):
        kept = torch.tensor(KEPT, dtype=torch.float64, requires_grad=True)
        (exact,) = torch.autograd.grad(log_p(x, lengths, kept).mean(), kept)
        assert got == pytest.approx(float(exact), abs=0.03)


@pytest.mark.slow
def test_other_functions_of_sequences() -> None:
    batches = [sequences(2), sequences(3)]
    exact = torch.cat([log_p(*batch) for batch in batches])
    annealed = annealed_importance_sampling(
        chain, smoother, batches, num_chains=2, num_steps=3, seed=0
    )
    values = annealed.log_likelihood.values.double()
    torch.testing.assert_close(values, exact, atol=1e-3, rtol=0)
    gaps = inference_gaps(chain, smoother, batches, num_samples=20, max_steps=5, seed=0)
    torch.testing.assert_close(gaps.elbo.values.double(), exact, atol=1e-3, rtol=0)
    assert check(chain, smoother, batches)


def test_arviz_has_nan_where_a_row_has_no_step() -> None:
    batches = [sequences(2, 3), sequences(4, 5)]
    data = to_arviz(chain, smoother, batches, num_samples=10, num_draws=30, seed=0)
    assert data.posterior["z_0"].shape == (1, 30, 8)
    assert np.isfinite(data.posterior["z_1"].values).all()
    last = data.posterior["z_3"].values
    assert np.isnan(last[..., :3]).all()
    assert np.isfinite(last[..., 3:]).all()
    seen = data.observed_data["x_3"].values
    assert np.isnan(seen[:3]).all()
    np.testing.assert_array_equal(seen[3:], batches[1][0][:, 3].numpy())


def test_diagnosis_of_each_step_is_that_of_the_rows_that_have_it() -> None:
    """KL, variance of means and their dimension, against the Gaussian conditionals of each row."""
    batches = [sequences(3, 150), sequences(5, 250)]
    found = diagnose(chain, smoother, batches, seed=0)
    assert found.names == ("z_0", "z_1", "z_2", "z_3", "z_4")
    lengths = torch.cat([batch[1] for batch in batches])
    for t, name in enumerate(found.names):
        means = []
        for x, n in batches:
            for row, length in zip(x.double(), n.tolist(), strict=True):
                if length > t:
                    cross = (covariance(length) - NOISE**2 * torch.eye(length).double())[t]
                    means.append(cross @ torch.linalg.solve(covariance(length), row[:length]))
        assert len(means) == int((lengths > t).sum())
        exact = float(torch.stack(means).var())
        assert float(found.mean_variance[t]) == pytest.approx(exact, rel=0.05), name
    assert found.active_units == 5
    (note,) = (note for note in found.notes if "not all rows have" in note)
    assert f"at least {int((lengths == 5).sum())} of 400" in note


@pytest.mark.parametrize("plain_first", [True, False])
def test_the_kl_of_a_kind_whose_guide_reverses_the_model(plain_first: bool) -> None:
    """z ~ N(0, 1), x ~ N(z, 1); or z, w ~ N(z, 1), x ~ N(w, 1), with the guide's w before z.

    The exact guide is w ~ N(2 x / 3, 2 / 3), z ~ N(w / 2, 1 / 2). The share of w in the rate is
    E log q(w | x) - log p(w | z) = x^2 / 18 + 1 / 3 - (1 + log(2 / 3)) / 2; its analytic KL is 1 / 3 more.
    """

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            if x.shape[1] == 2:
                z = pyro.sample("w", dist.Normal(z, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            if x.shape[1] == 2:
                w = pyro.sample("w", dist.Normal(x[:, 0] * 2 / 3, (2 / 3) ** 0.5))
                pyro.sample("z", dist.Normal(w / 2, 0.5**0.5))
            else:
                pyro.sample("z", dist.Normal(x[:, 0] / 2, 0.5**0.5))

    plain, both = torch.randn(50, 1), torch.randn(200, 2)
    batches = [plain, both] if plain_first else [both, plain]
    found = diagnose(model, guide, batches, seed=0)
    squares = float(both[:, 0].square().mean())
    exact = squares / 18 + 1 / 3 - (1 + math.log(2 / 3)) / 2
    assert float(found.kl[found.names.index("w")]) == pytest.approx(exact, abs=0.05)


def test_mutual_information_among_rows_of_one_kind() -> None:
    """Rows have one or two independent latents, z_i | x_i ~ N(x_i / 2, 1 / 2): log 2 / 2 nats each."""

    def model(x: Tensor, both: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            for i, there in enumerate((torch.ones_like(both), both)):
                with masked(there):
                    z = pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))
                    pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=x[:, i])

    def guide(x: Tensor, both: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            for i, there in enumerate((torch.ones_like(both), both)):
                with masked(there):
                    pyro.sample(f"z_{i}", dist.Normal(x[:, i] / 2, 0.5**0.5))

    x, both = 2**0.5 * torch.randn(3000, 2), torch.rand(3000) < 1 / 3
    found = diagnose(model, guide, (x, both), seed=0)
    exact = 0.5 * math.log(2) * (1 + 1 / 3)
    assert found.mutual_information.mean == pytest.approx(exact, abs=0.06)
    assert abs(found.marginal_kl.mean) < 0.02
    limit = (math.log(1000) + 2 * math.log(2000)) / 3
    assert found.information_limit == pytest.approx(limit, abs=0.04)
    assert any("2 kinds" in note for note in found.notes)
    assert float(found.mean_variance[1]) == pytest.approx(0.5, rel=0.1)  # of the rows that have it


# -- labels: a latent in some batches, observed in others ------------------------------------------------

WEIGHTS, CENTERS = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([-2.0, 0.0, 3.0])


def of_classes(x: Tensor) -> Tensor:
    """log p(x, y) of each class, `(n, 3)`."""
    found: Tensor = WEIGHTS.log() + dist.Normal(CENTERS, 2**0.5).log_prob(x.unsqueeze(-1))
    return found


def labels_model(x: Tensor, y: Tensor | None = None) -> None:
    centers = pyro.param("centers", CENTERS.clone())
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(WEIGHTS), obs=y)
        z = pyro.sample("z", dist.Normal(centers[y], 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def labels_guide(x: Tensor, y: Tensor | None = None) -> None:
    with pyro.plate("data", len(x)):
        if y is None:
            y = pyro.sample("y", dist.Categorical(logits=of_classes(x)))
        pyro.sample("z", dist.Normal((CENTERS[y] + x) / 2, 0.5**0.5))


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
def test_labelled_and_unlabelled_batches(order: tuple[int, ...]) -> None:
    x, y = 2.5 * torch.randn(60), torch.randint(0, 3, (20,))
    parts: list[tuple[Batch, Tensor]] = [
        ((x[:20], y), of_classes(x[:20]).gather(1, y.unsqueeze(1))[:, 0]),
        ((x[20:40],), of_classes(x[20:40]).logsumexp(1)),
        ((x[40:],), of_classes(x[40:]).logsumexp(1)),
    ]
    batches, exact = [parts[i][0] for i in order], torch.cat([parts[i][1] for i in order])
    found = evaluate(labels_model, labels_guide, batches, num_samples=20, seed=0)
    torch.testing.assert_close(found.log_likelihood.values, exact, atol=1e-4, rtol=0)
    for objective in (None, TraceELBO(), ImportanceWeightedELBO(num_particles=2)):
        options: dict[str, Any] = {"max_epochs": 1, "learning_rate": 1e-9, "seed": 0}
        fitted = fit(labels_model, labels_guide, batches, objective=objective, **options)
        assert fitted.history[-1]["elbo"] == pytest.approx(float(exact.mean()), abs=1e-4)


@pytest.mark.filterwarnings(
    "ignore:parameter 'param.shift' receives no gradient from the first batch"
)
def test_the_default_objective_suits_each_kind_of_batch() -> None:
    """Labelled first: the mean-field ELBO chosen there would give q(y | x) no gradient afterwards."""
    x, y = 2.5 * torch.randn(200), torch.randint(0, 3, (20,))

    def guide(x: Tensor, y: Tensor | None = None) -> None:
        shift = pyro.param("shift", torch.tensor([2.0, 0.0, -2.0]))
        with pyro.plate("data", len(x)):
            if y is None:
                y = pyro.sample("y", dist.Categorical(logits=of_classes(x) + shift))
            pyro.sample("z", dist.Normal((CENTERS[y] + x) / 2, 0.5**0.5))

    def model(x: Tensor, y: Tensor | None = None) -> None:
        poutine.block(labels_model, hide=["centers"])(x, y)

    batches: list[Batch] = [(x[:20], y), (x[20:],)]
    exact = float(of_classes(x[20:]).logsumexp(1).mean())
    before = evaluate(model, guide, batches, num_samples=50, seed=0).elbo.values[20:].mean()
    assert float(before) < exact - 0.3
    fitted = fit(model, guide, batches, max_epochs=75, learning_rate=0.1, seed=0)
    after = evaluate(fitted.model, fitted.guide, batches, num_samples=50, seed=0)
    assert float(after.elbo.values[20:].mean()) == pytest.approx(exact, abs=0.03)
    pair = Pair.of(fitted.model, fitted.guide)
    with pair.scope():  # the exact q(y | x) has the same shift for every class
        shift = pyro.param("shift").detach()
    assert float((shift - shift.mean()).abs().max()) < 0.2


def test_bad_data_in_a_later_kind_of_batch_are_found() -> None:
    x = torch.randn(20)
    bad = torch.cat([torch.randn(19), torch.tensor([math.nan])])
    batches: list[Batch] = [(x, torch.zeros(20, dtype=torch.long)), (bad,)]
    with pytest.raises(PairError, match=r"batch 1 of x, row 19 in it \(counted from 0\).*NaN"):
        fit(labels_model, lambda x, y=None: labels_guide(x.nan_to_num(), y), batches, max_epochs=1)


# -- points and rows without latents, in some batches ------------------------------------------------------


def normals(x: Tensor, flag: Tensor) -> None:
    """One latent, or two where the flag is 3."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        if bool((flag == 3).all()):
            z = z + pyro.sample("w", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def partly_points(x: Tensor, flag: Tensor) -> None:
    """The posterior; where the flag is 1, its mean alone; where it is 3, a point for w."""
    slope = pyro.param("slope", torch.tensor(0.5))
    with pyro.plate("data", len(x)):
        if bool((flag == 3).all()):
            w = pyro.sample("w", dist.Delta(x / 3))
            pyro.sample("z", dist.Normal((x - w) / 2, 0.5**0.5))
        elif bool((flag == 1).all()):
            pyro.sample("z", dist.Delta(slope * x))
        else:
            pyro.sample("z", dist.Normal(slope * x, 0.5**0.5))


def of_flags(*flags: int, n: int = 5) -> list[Batch]:
    return [(torch.randn(n), torch.full((n,), flag)) for flag in flags]


@pytest.mark.parametrize("flags", [(0, 1, 0), (1, 0, 1), (0, 3, 1), (3, 3)])
@pytest.mark.parametrize("capture", [True, False])
def test_points_take_log_p_from_their_own_rows_alone(flags: tuple[int, ...], capture: bool) -> None:
    batches = of_flags(*flags)
    x, flag = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
    found = evaluate(normals, partly_points, batches, num_samples=40, seed=0, capture=capture)
    exact = dist.Normal(0.0, 2**0.5).log_prob(x)
    there = flag == 0
    of_rows = (found.log_likelihood.values, found.log_likelihood_error, found.ess, found.khat)
    torch.testing.assert_close(of_rows[0][there], exact[there], atol=1e-5, rtol=0)
    torch.testing.assert_close(of_rows[2][there], torch.full((int(there.sum()),), 40.0))
    for values in of_rows:
        assert values[~there].isnan().all()
        assert not values[there].isnan().any()
    assert (found.unreliable == ~there).all()
    at_point = dist.Normal(0.0, 1.0).log_prob(x / 2) + dist.Normal(x / 2, 1.0).log_prob(x)
    elbos = found.elbo.values
    torch.testing.assert_close(elbos[there], exact[there], atol=1e-5, rtol=0)
    torch.testing.assert_close(elbos[flag == 1], at_point[flag == 1], atol=1e-5, rtol=0)
    # The mean is over all rows or none, and what is said names latents and rows.
    assert math.isnan(found.log_likelihood.mean)
    assert math.isnan(found.bits_per_dim.mean)
    n = len(x)
    counts = {"z": int((flag == 1).sum()), "w": int((flag == 3).sum())}
    (said,) = found.warnings
    for text in (said, found.log_likelihood.missing, *([] if not there.any() else [str(found)])):
        for name, count in counts.items():
            assert (f"'{name}' on {count} of {n} rows" in text) == (0 < count < n)
    defined = f"defined for {int(there.sum())} of {n} rows only"
    assert found.log_likelihood.missing.startswith(defined if there.any() else "not defined")
    assert ("mix two kinds" in said) == bool(there.any())
    data = to_arviz(normals, partly_points, batches, num_samples=5, num_draws=2, seed=0)
    np.testing.assert_array_equal(np.isnan(data.log_likelihood["x"].values[0, 0]), ~there.numpy())
    assert found.log_likelihood.missing in data.log_likelihood["x"].attrs["description"]


def test_numbers_of_the_rows_that_have_log_p_are_printed_as_theirs() -> None:
    found = evaluate(normals, partly_points, of_flags(0, 1), num_samples=40, seed=0)
    lines = dict(found.lines())
    assert lines["ESS, median, of 5 rows"] == "40.0 of 40"
    assert lines["Pareto k-hat, largest, of 5 rows"].startswith("- (0.0 % above")


@pytest.mark.parametrize("flags", [(0, 1), (1, 0)])
def test_points_of_any_kind_of_batch_are_refused_by_name(flags: tuple[int, ...]) -> None:
    programs, batches = (normals, partly_points), of_flags(*flags)
    runs: list[Callable[[], Any]] = [
        lambda: diagnose(*programs, batches, seed=0),
        lambda: inference_gaps(*programs, batches, num_samples=10, max_steps=2, seed=0),
        lambda: annealed_importance_sampling(*programs, batches, num_chains=2, num_steps=2, seed=0),
    ]
    for run in runs:
        with pytest.raises(PairError, match="the guide gives a point for 'z'"):
            run()


def test_gaps_with_a_truth_for_some_of_the_rows_have_no_sign() -> None:
    batches = of_flags(0, 1)
    truth = evaluate(normals, partly_points, batches, num_samples=40, seed=0)
    rows = torch.cat([x for x, _ in batches]), torch.zeros(10)
    gaps = inference_gaps(
        normals, partly_points, rows, truth=truth, num_samples=10, max_steps=2, seed=0
    )
    assert math.isnan(gaps.approximation_gap.mean)
    assert not any("approximation gap has the wrong sign" in text for text in gaps.warnings)
    assert any("'z' on 5 of 10 rows" in text for text in gaps.warnings)


@pytest.mark.parametrize("of", ["rate", "distortion"])
def test_nan_for_all_rows_has_a_warning(of: str) -> None:
    """Where no check of Pyro's looks: scale 0 of a guide, NaN in a network of the model."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            loc = z * (math.nan if of == "distortion" else 1.0)
            pyro.sample("x", dist.Normal(loc, 1.0, validate_args=False), obs=x)

    def guide(x: Tensor) -> None:
        scale = 0.0 if of == "rate" else 0.5**0.5
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, scale, validate_args=False))

    found = evaluate(model, guide, torch.randn(6), num_samples=10, seed=0)
    assert found.log_likelihood.values.isnan().all()
    assert ("log p(x)", "not defined") in found.lines()
    assert found.warnings[0] == "log p(x) is not finite on 6 of 6 rows"
    (other,) = found.warnings[1:]
    assert f"the {of}, of log" in other


def some_with_latents(x: Tensor, flag: Tensor) -> None:
    """z where the flag is set; otherwise x has mean 0."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0)) if with_second(flag) else 0.0
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def posterior_of_some(x: Tensor, flag: Tensor) -> None:
    slope = pyro.param("slope", torch.tensor(0.5))
    with pyro.plate("data", len(x)):
        if with_second(flag):
            pyro.sample("z", dist.Normal(slope * x, 0.5**0.5))


@pytest.mark.parametrize("first", [0, 1])
def test_rows_without_latents(first: int) -> None:
    """Such as labelled rows: z of half of the rows carries log 2 / 2 nats about x, and all else is exact."""
    parts: list[Batch] = [
        (torch.randn(1000), torch.zeros(1000)),
        (2**0.5 * torch.randn(1000), torch.ones(1000)),
    ]
    batches = parts if first == 0 else parts[::-1]
    programs = some_with_latents, posterior_of_some
    found = diagnose(*programs, batches, seed=1)  # not the seed of the data
    assert found.names == ("z",)
    assert float(found.mean_variance[0]) == pytest.approx(0.5, rel=0.1)
    assert found.mutual_information.mean == pytest.approx(math.log(2) / 4, abs=0.03)
    assert abs(found.marginal_kl.mean) < 0.02
    values = found.mutual_information.values[slice(0, 500) if first == 0 else slice(500, 1000)]
    assert (values == 0).all()
    assert found.information_limit == pytest.approx(math.log(1000) / 2)
    few = [(x[:5], flag[:5]) for x, flag in batches]
    x, flag = (torch.cat(tensors) for tensors in zip(*few, strict=True))
    exact = dist.Normal(0.0, (1 + flag) ** 0.5).log_prob(x)
    gaps = inference_gaps(*programs, few, num_samples=20, max_steps=2, seed=0)
    torch.testing.assert_close(gaps.elbo.values, exact, atol=1e-4, rtol=0)
    torch.testing.assert_close(gaps.log_likelihood.values, exact, atol=1e-2, rtol=0)
    assert (gaps.amortization_gap.values[flag == 0] == 0).all()
    assert gaps.converged[flag == 0].all()
    data = to_arviz(*programs, few, num_samples=5, num_draws=3, seed=0)
    for group in (data.posterior, data.prior):
        np.testing.assert_array_equal(np.isnan(group["z"].values[0, 0]), flag.numpy() == 0)


def test_the_kl_of_each_kind_of_rows_is_its_own() -> None:
    """Where the flag is set, w comes first in the model and last in the guide: its analytic KL is wrong.

    Both chains have the same joint density, so that the KL of z and w together is 0 for either kind.
    """
    r = 0.8
    rest = (1 - r**2) ** 0.5

    def model(x: Tensor, flag: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("w", dist.Normal(r * z, rest))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    def guide(x: Tensor, flag: Tensor) -> None:
        with pyro.plate("data", len(x)):
            if with_second(flag):
                w = pyro.sample("w", dist.Normal(0.0 * x, 1.0))
                pyro.sample("z", dist.Normal(r * w, rest))
            else:
                z = pyro.sample("z", dist.Normal(0.0 * x, 1.0))
                pyro.sample("w", dist.Normal(r * z, rest))

    for flags in ((0, 1), (1, 0)):
        batches = [(torch.randn(200), torch.full((200,), flag)) for flag in flags]
        found = diagnose(model, guide, batches, seed=0)
        assert float(found.kl.sum()) == pytest.approx(0.0, abs=0.05)


# -- kinds of the same shapes: what comes later is checked as what comes first -----------------------------

WRONG: dict[str, tuple[Any, Any, str]] = {  # w of the model and of the guide, and what is said
    "support": (
        lambda x: dist.Exponential(1.0),
        lambda x: dist.Normal(0.5 + 0 * x, 1.0),
        "numbers from 0",
    ),
    "measure": (lambda x: dist.Normal(0.0, 1.0), lambda x: dist.Poisson(1 + 0 * x), "no meaning"),
    "mask": (
        lambda x: dist.Normal(0.0, 1.0),
        lambda x: dist.Normal(x / 3, 1.0).mask(torch.arange(len(x)) % 2 == 0),
        "the guide masks",
    ),
    "no mask but False": (
        lambda x: dist.Normal(0.0, 1.0),
        lambda x: dist.Normal(x / 3, 1.0).mask(False),
        "the guide masks",
    ),
    "shape": (
        lambda x: dist.Normal(0.0, 1.0),
        lambda x: dist.Normal(torch.zeros(3, len(x)), 1.0),
        "log dens",
    ),
}


def with_second(flag: Tensor) -> bool:
    return bool((flag > 0).all())


def wrong_pair(case: str) -> tuple[Any, Any]:
    """z in all batches, and w, which is wrong, where the flag is set."""
    of_model, of_guide, _ = WRONG[case]

    def model(x: Tensor, flag: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            w = pyro.sample("w", of_model(x)) if with_second(flag) else 0.0
            pyro.sample("x", dist.Normal(z + w, 1.0), obs=x)

    def guide(x: Tensor, flag: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x, 0.8))
            if with_second(flag):
                pyro.sample("w", of_guide(x))

    return model, guide


def flagged_model(x: Tensor, y: Tensor, flag: Tensor) -> None:
    """Labels are data where the flag is set, and otherwise a number that nothing reads."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        if with_second(flag):
            pyro.sample("y", dist.Bernoulli(0.25), obs=y)


def flagged_guide(x: Tensor, y: Tensor, flag: Tensor) -> None:
    slope = pyro.param("slope", torch.tensor(0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(slope * x, 0.5**0.5))


def of_two_kinds(first: int = 0) -> list[Batch]:
    x = torch.linspace(-2, 2, 20)
    batches: list[Batch] = [(x, torch.zeros(20)), (x, torch.ones(20))]
    return batches if first == 0 else batches[::-1]


@pytest.mark.slow(only=("mask-0",))
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("case", WRONG)
def test_a_later_kind_of_batch_is_refused_as_a_first_one(case: str, first: int) -> None:
    programs, batches, said = wrong_pair(case), of_two_kinds(first), WRONG[case][2]
    with pytest.raises(PairError, match=f"site 'w'.*{said}"):
        evaluate(*programs, batches, num_samples=10, seed=0)
    with pytest.raises(PairError, match=f"site 'w'.*{said}"):
        fit(*programs, batches, objective=TraceELBO(), max_epochs=1, seed=0)


@pytest.mark.parametrize("first", [0, 1])
def test_every_function_refuses_a_later_kind(first: int) -> None:
    programs, batches = wrong_pair("mask"), of_two_kinds(first)
    runs: list[Callable[[], Any]] = [
        lambda: diagnose(*programs, batches, seed=0),
        lambda: inference_gaps(*programs, batches, num_samples=10, max_steps=2, seed=0),
        lambda: annealed_importance_sampling(*programs, batches, num_chains=2, num_steps=2, seed=0),
        lambda: to_arviz(*programs, batches, num_samples=10, num_draws=10, seed=0),
        lambda: fit_em(programs[0], batches, guide=programs[1], max_iterations=1, seed=0),
        lambda: fit(
            *programs, [batches[0 if first == 0 else 1]], validation=batches, max_epochs=1, seed=0
        ),
    ]
    for run in runs:
        with pytest.raises(PairError, match="the guide masks 10 of 20"):
            run()


def unsuited(case: str) -> tuple[Any, Any]:
    """z, and where the flag is set w, which an objective cannot use."""

    def model(x: Tensor, flag: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            w: Any = 0.0
            if with_second(flag) and case == "sampler":
                w = pyro.sample("w", dist.Bernoulli(0.5))
            elif with_second(flag) and case == "order":
                w = pyro.sample("w", dist.Normal(0.8 * z, 0.6))
            elif with_second(flag) and case == "weight":
                w = pyro.sample("w", dist.Normal(0.0, 1.0))
            elif with_second(flag) and case == "enumerated":
                w = pyro.sample("w", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            with poutine.scale(scale=2.0 if with_second(flag) and case == "weight" else 1.0):
                pyro.sample("x", dist.Normal(z + w, 1.0), obs=x)

    def guide(x: Tensor, flag: Tensor) -> None:
        slope, w = pyro.param("slope", torch.tensor(0.5)), 0.0 * x
        with pyro.plate("data", len(x)):
            if with_second(flag) and case == "sampler":
                w = pyro.sample("w", dist.Bernoulli(probs=0.5 + 0.0 * x))
            elif with_second(flag) and case == "order":
                w = pyro.sample("w", dist.Normal(slope * x, 1.0))
            elif with_second(flag) and case == "weight":
                pyro.sample("w", dist.Normal(slope * x, 0.8))
            pyro.sample("z", dist.Normal(slope * x - w, 0.8))

    return model, guide


UNSUITED: list[tuple[str, Objective, str]] = [
    ("sampler", MeanFieldELBO(), "site 'w' is drawn from Bernoulli.*MeanFieldELBO needs one"),
    ("sampler", ImportanceWeightedELBO(doubly_reparameterized=True), "site 'w' is drawn from"),
    ("sampler", TraceELBO(stick_the_landing=True), "site 'w' is drawn from Bernoulli"),
    ("sampler", ELBO(stick_the_landing=True), "'w'.*stick_the_landing"),
    ("sampler", TraceELBO(free_bits=0.1), "site 'w' is drawn from Bernoulli.*free bits needs one"),
    ("order", MeanFieldELBO(), "the analytic KL of site '[zw]' is wrong"),
    ("enumerated", TraceELBO(), "site 'w' is not sampled by the guide but marked"),
    ("enumerated", EnumELBO(beta=0.5), "site 'w' is summed out in the model"),
]


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize(("case", "objective", "said"), UNSUITED, ids=repr)
def test_an_objective_is_checked_on_each_kind_of_batch(
    case: str, objective: Objective, said: str, first: int
) -> None:
    """Whichever comes first. `MeanFieldELBO` would train on a wrong KL, without an error."""
    batches = of_two_kinds(first)
    options: dict[str, Any] = {"objective": objective, "max_epochs": 1, "seed": 0}
    with pytest.raises(PairError, match=said):
        fit(*unsuited(case), batches, **options)
    alone = [batches[first]]  # the kind that suits it
    fit(*unsuited(case), alone, **options)
    # Held-out rows are not trained on.
    if case != "enumerated":
        fit(*unsuited(case), alone, validation=batches, **options)


def test_weights_of_a_later_kind_are_named() -> None:
    batches = [*of_two_kinds()] * 20
    with pytest.warns(PairWarning, match=r"site 'x' is weighted by poutine\.scale"):
        fit(*unsuited("weight"), batches, objective=ImportanceWeightedELBO(), max_epochs=1, seed=0)
    # Loss and ELBO differ by the weights alone.
    fitted = fit(*unsuited("weight"), batches, objective=TraceELBO(), max_epochs=1, seed=0)
    assert fitted.warnings == ()
    assert abs(fitted.history[-1]["loss"] + fitted.history[-1]["elbo"]) > 0.1


def test_an_objective_belongs_to_the_sites_it_was_resolved_on() -> None:
    """The labelled kind is known from elsewhere, and an unlabelled batch of its shapes comes first."""
    pair = Pair.of(*unsuited("order"))
    one, two = of_two_kinds()
    with pair.scope():
        layouts, resolved = Layouts(pair), Resolved(ELBO(), pair)
        layouts.of(two)
        layouts.of(one)  # the last one of these shapes
        for batch, kind in ((two, TraceELBO), (one, MeanFieldELBO), (two, TraceELBO)):
            resolved.loss(layouts, batch)
            assert isinstance(resolved.of(layouts.of(batch), batch), kind)


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_kind_of_validation_rows_is_said_of_them(case: str) -> None:
    of_z, of_both = of_two_kinds()
    programs, said = wrong_pair(case), f"^validation: .*site 'w'.*{WRONG[case][2]}"
    options: dict[str, Any] = {"objective": TraceELBO(), "max_epochs": 1, "seed": 0}
    for held_out in ([of_both], [of_z, of_both]):  # at the start, and after an epoch
        with pytest.raises(PairError, match=said):
            fit(*programs, [of_z], validation=held_out, **options)
    with pytest.raises(PairError, match=r"^(?!validation).*site 'w'"):
        fit(*programs, [of_z, of_both], validation=[of_z], **options)


def test_a_kind_of_validation_rows_without_a_latent_in_the_guide() -> None:
    def guide(x: Tensor, flag: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x, 0.8))

    of_z, of_both = of_two_kinds()
    with pytest.raises(PairError, match=r"^validation: .*'w' is not sampled by the guide"):
        fit(wrong_pair("mask")[0], guide, [of_z], validation=[of_z, of_both], max_epochs=1, seed=0)


def test_a_bad_row_of_a_later_kind_of_validation_rows_is_named_once() -> None:
    """x is as it comes until the flag is set; from then on the programs run, and find the row."""

    model, guide = flagged_model, flagged_guide
    x, ones = torch.randn(20), torch.ones(20)
    bad = torch.cat([ones[:7], 0.5 * ones[7:]])
    held_out = [(x, 0.5 * ones, 0 * ones), (x, ones, ones), (x, bad, ones)]
    with pytest.raises(PairError, match=r"^batch 2 of validation, row 7 in it.*support of Bern"):
        fit(model, guide, held_out[:1], validation=held_out, max_epochs=1, seed=0)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("run", [evaluate, fit])
def test_masks_that_come_later_are_checked_in_every_batch(run: Any, in_memory: bool) -> None:
    """The first masked batch is right; in a later one the guide alone leaves out a row."""

    def program(of_model: bool) -> Callable[[Tensor, Tensor], None]:
        def run(x: Tensor, there: Tensor) -> None:
            here: Any = there > 0 if of_model else there > 1
            here = None if bool((there == 2).all()) else here
            with pyro.plate("data", len(x)):
                with poutine.mask(mask=here) if here is not None else nullcontext():
                    loc = 0.0 if of_model else pyro.param("loc", torch.tensor(0.0))
                    z = pyro.sample("z", dist.Normal(loc + 0.0 * x, 1.0))
                if of_model:
                    pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        return run

    x, there = torch.randn(2200), torch.full((2200,), 2)
    there[1600] = 0  # in neither program
    right = [(x[i : i + 100], there[i : i + 100]) for i in range(0, 2200, 100)]
    options: dict[str, Any] = {"seed": 0}
    options |= {"max_epochs": 1, "batch_size": 100} if run is fit else {"num_samples": 2}
    run(program(True), program(False), (x, there) if in_memory else right, **options)
    there[2150] = 1  # in the model alone
    with pytest.raises(PairError, match="the guide masks 1 of"):
        run(program(True), program(False), (x, there) if in_memory else right, **options)


@pytest.mark.parametrize("first", [0, 1])
def test_bad_data_of_a_later_kind_of_equal_shapes(first: int) -> None:
    model, guide = flagged_model, flagged_guide
    x, ones = torch.randn(20), torch.ones(20)
    parts: list[Batch] = [(x, ones * math.nan, 0 * ones), (x, ones, ones)]
    of_x = dist.Normal(0.0, 2**0.5).log_prob(x)
    truths = [of_x, of_x + math.log(0.25)]
    order = (0, 1, 0, 1) if first == 0 else (1, 0, 1, 0)
    batches, exact = [parts[i] for i in order], torch.cat([truths[i] for i in order])
    found = evaluate(model, guide, batches, num_samples=10, seed=0)
    torch.testing.assert_close(found.log_likelihood.values, exact, atol=1e-4, rtol=0)
    options: dict[str, Any] = {"max_epochs": 1, "learning_rate": 1e-9, "seed": 0}
    fitted = fit(model, guide, batches, objective=TraceELBO(), **options)
    assert fitted.history[-1]["elbo"] == pytest.approx(float(exact.mean()), abs=1e-4)
    for place in range(4):
        if order[place] == 1:
            bad = [*batches]
            bad[place] = (x, ones * 0.5, ones)
            with pytest.raises(PairError, match="outside of the support of Bernoulli"):
                evaluate(model, guide, bad, num_samples=10, seed=0)
            with pytest.raises(PairError, match="outside of the support of Bernoulli"):
                fit(model, guide, bad, **options)


def test_a_known_kind_is_not_checked_again() -> None:
    pair, told = Pair.of(labels_model, labels_guide), []
    x, y = torch.randn(6), torch.tensor([0, 1, 2, 0, 1, 2])
    with pair.scope():
        layouts = Layouts(pair)
        layouts.check = lambda batch, traces: told.append(
            (len(batch), traces[0].nodes["y"]["is_observed"])
        )
        for batch in [(x,), (x, y), (x[:3],), (x, y), (x[:1], y[:1])]:
            layouts.of(batch)
    assert told == [(1, False), (2, True)]


def test_kinds_of_one_shape_in_turns_are_told_apart_once_for_each_batch() -> None:
    """Also where a tensor is used again for other values: what is expected may be wrong, not what is found."""
    runs, (model, guide) = [0], wrong_pair("mask")

    def counted(x: Tensor, flag: Tensor) -> None:
        runs[0] += 1
        model(x, flag)

    pair = Pair.of(counted, guide)
    with pair.scope():
        layouts = Layouts(pair)
        kinds = [of_two_kinds()[i % 2] for i in range(6)]

        def latents(batch: Batch) -> tuple[str, ...]:
            def work(layout: Layout) -> tuple[str, ...]:
                layout.require(*trace_pair(pair, batch))
                return layout.latents

            return layouts.run(batch, work)

        for i, batch in enumerate(kinds):
            before = runs[0]
            found = [latents(batch), layouts.expected(batch).latents, latents(batch)]
            assert found == [("z", "w") if i % 2 else ("z",)] * 3
            if i > 2:  # both kinds are known: one run to tell, and two of the work
                assert runs[0] - before == 3
        for value in (0.0, 1.0, 0.0):
            batch[1].fill_(value)
            assert latents(batch) == (("z", "w") if value else ("z",))


@pytest.mark.parametrize("first", [0, 1])
def test_notes_and_cautions_are_those_of_every_kind(first: int) -> None:
    x, y = 2.5 * torch.randn(20), torch.randint(0, 3, (10,))

    def model(x: Tensor, y: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(WEIGHTS), obs=y)
            pyro.sample("x", dist.Normal(CENTERS[y], 2**0.5), obs=x)

    def guide(x: Tensor, y: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            if y is None:
                pyro.sample("y", dist.Categorical(logits=of_classes(x)))

    batches: list[Batch] = [(x[:10], y), (x[10:],)]
    found = evaluate(model, guide, batches if first == 0 else batches[::-1], seed=0)
    (note,) = found.notes
    assert "'y' are summed over their 3 joint values" in note

    def pixels(x: Tensor, flag: Tensor) -> None:
        size = 2 if with_second(flag) else None
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0))
            if with_second(flag):
                z = z + pyro.sample("w", dist.Normal(torch.zeros(len(x), 1), 1.0))
            with pyro.plate("pixels", 4, subsample_size=size, dim=-1) as index:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, index])

    def encoder(x: Tensor, flag: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(x.mean(1, keepdim=True), 1.0))
            if with_second(flag):
                pyro.sample("w", dist.Normal(torch.zeros(len(x), 1), 1.0))

    rows = torch.randn(6, 4)
    parts: list[Batch] = [(rows, torch.zeros(6)), (rows[:5], torch.ones(5))]
    order = parts if first == 0 else parts[::-1]
    whole = evaluate(pixels, encoder, parts[:1], num_samples=10, seed=0)
    assert not any("subsampled" in text for text in whole.warnings)
    found = evaluate(pixels, encoder, order, num_samples=10, seed=0)
    assert (
        sum("plate 'pixels' inside of a row is subsampled (2 of 4)" in t for t in found.warnings)
        == 1
    )


# -- state -----------------------------------------------------------------------------------------------


class Normalizing(nn.Module):
    """An encoder with batch norm; the sites depend on the values of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1)
        self.slope = nn.Parameter(torch.tensor(0.5))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            if bool((x > 0).all()):
                z = z + pyro.sample("w", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            features = self.norm(x.unsqueeze(1))[:, 0]
            pyro.sample("z", dist.Normal(self.slope * features, 1.0))
            if bool((x > 0).all()):
                pyro.sample("w", dist.Normal(self.slope * features, 1.0))


def test_a_step_done_twice_counts_once_for_batch_norm() -> None:
    torch.manual_seed(0)
    batches = [torch.randn(8), torch.rand(8), torch.randn(8), torch.rand(8)]
    pair, alone = Normalizing(), Normalizing()
    fit(pair.model, pair.guide, batches, max_epochs=1, learning_rate=1e-9, seed=0)
    alone.train()
    for batch in batches:
        alone.norm(batch.unsqueeze(1))
    assert pair.norm.num_batches_tracked == 4
    torch.testing.assert_close(pair.norm.running_mean, alone.norm.running_mean)


def test_a_resumed_training_takes_the_same_steps(tmp_path: Path) -> None:
    batches = [torch.randn(8), torch.rand(8), torch.randn(8), torch.rand(8)]
    torch.manual_seed(0)
    whole, parts = Normalizing(), Normalizing()
    options: dict[str, Any] = {"seed": 0, "learning_rate": 0.1}
    fit(whole.model, whole.guide, batches, max_epochs=4, **options)
    fit(parts.model, parts.guide, batches, max_epochs=2, run_dir=tmp_path, **options)
    fit(parts.model, parts.guide, batches, max_epochs=4, run_dir=tmp_path, resume=True, **options)
    assert torch.equal(whole.slope, parts.slope)
    assert torch.equal(whole.norm.running_mean, parts.norm.running_mean)  # type: ignore[arg-type]


def test_an_error_of_the_programs_is_theirs() -> None:
    def model(x: Tensor) -> None:
        if len(x) == 3:
            raise RuntimeError("three")
        labels_model(x)

    pair = Pair.of(model, labels_guide)
    with pair.scope():
        layouts = Layouts(pair)
        layouts.of(torch.zeros(2))
        with pytest.raises(RuntimeError, match=r"^once$"):
            layouts.run(torch.zeros(2), lambda layout: (_ for _ in ()).throw(RuntimeError("once")))
        with pytest.raises(RuntimeError, match=r"^work$"):
            layouts.run(torch.zeros(3), lambda layout: (_ for _ in ()).throw(RuntimeError("work")))


# -- batches whose loss has no gradient --------------------------------------------------------------------


def fixed_model(x: Tensor, z: Tensor | None = None) -> None:
    """z ~ N(0, 1) and x ~ N(0, 1), which no parameter enters."""
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(0.0 * x, 1.0), obs=z)
        pyro.sample("x", dist.Normal(0.0 * x, 1.0), obs=x)


def guide_of_a_mean(x: Tensor, z: Tensor | None = None) -> None:
    loc = pyro.param("loc", torch.tensor(2.0))
    if z is None:
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(loc.expand(len(x)), 1.0))


@pytest.mark.parametrize("labelled_first", [False, True])
@pytest.mark.parametrize("capture", [False, True])
@pytest.mark.filterwarnings("ignore::ppl_vae.checks.PairWarning")
def test_a_batch_without_a_gradient_counts_in_the_metrics_alone(
    labelled_first: bool, capture: bool
) -> None:
    """Without labels, the loss is loc^2 / 2 - log p(x), so that each epoch takes a tenth of loc."""
    x, z, epochs = torch.randn(12), torch.randn(8), 30
    batches: list[Any] = [(x[:8], z), (x[8:], None)]
    if not labelled_first:
        batches.reverse()
    fitted = fit(
        fixed_model,
        guide_of_a_mean,
        batches,
        objective=MeanFieldELBO(),
        optimizer=lambda leaves: torch.optim.SGD(leaves, lr=0.1),
        max_epochs=epochs,
        capture=capture,
    )
    q: Any = poutine.trace(fitted.guide).get_trace(x[8:]).nodes["z"]["fn"]
    assert float(q.mean[0].detach()) == pytest.approx(2 * 0.9**epochs, rel=1e-4)
    normal, before = dist.Normal(0.0, 1.0), 2 * 0.9 ** (epochs - 1)
    total = normal.log_prob(x).sum() + normal.log_prob(z).sum() - 4 * before**2 / 2
    assert fitted.history[-1]["loss"] == pytest.approx(-float(total) / 12, rel=1e-4)


@pytest.mark.filterwarnings("ignore::ppl_vae.checks.PairWarning")
def test_batches_that_all_have_no_gradient_are_refused() -> None:
    x, z = torch.randn(8), torch.randn(8)
    with pytest.raises(PairError, match="no batch of epoch 1 has a loss with a gradient"):
        fit(fixed_model, guide_of_a_mean, [(x[:4], z[:4]), (x[4:], z[4:])], max_epochs=2)


# -- batches that differ in values alone -------------------------------------------------------------------


def test_a_guide_that_is_narrow_in_later_rows_is_told() -> None:
    """z ~ U(0, b), of which the guide draws z < 1: with b = 3, p(x) lacks two thirds."""

    def model(x: Tensor, b: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Uniform(0 * x, b))
            pyro.sample("x", dist.Normal(0 * x, 1.0), obs=x)

    def guide(x: Tensor, b: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Uniform(0 * x, b.clamp(max=1.0)))

    x, b = torch.randn(100), torch.ones(100)
    assert not evaluate(model, guide, (x, b), num_samples=5).cautions
    b[80:] = 3.0
    found = evaluate(model, guide, (x, b), num_samples=5)
    off = found.log_likelihood.values - dist.Normal(0.0, 1.0).log_prob(x)
    torch.testing.assert_close(off, -b.log(), atol=1e-5, rtol=0)
    (caution,) = found.cautions
    assert "site 'z': the guide draws" in caution
    assert "log p(x) leaves out the rest" in caution


@pytest.mark.parametrize("validation", [False, True])
def test_bounds_of_the_data_are_looked_at_in_all_rows(validation: bool) -> None:
    """Counts above their total have no probability; lgamma would give them one."""

    def model(k: Tensor, total: Tensor) -> None:
        with pyro.plate("rows", len(k)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(k)), 1.0))
            pyro.sample("k", dist.Binomial(total, logits=z), obs=k)

    def guide(k: Tensor, total: Tensor) -> None:
        with pyro.plate("rows", len(k)):
            pyro.sample("z", dist.Normal(torch.zeros(len(k)), 1.0))

    k, total = torch.full((100,), 2.0), torch.full((100,), 4.0)
    total[90] = 1.0
    with (
        pyro.validation_enabled(validation),
        pytest.raises(PairError, match=r"row 90 of x \(counted from 0\)"),
    ):
        evaluate(model, guide, (k, total), num_samples=5)


def test_weights_of_later_rows_alone_are_no_disagreement_of_loss_and_elbo() -> None:
    """The first rows have the weight 1, so that only the scale, a tensor, shows that others may not."""

    def model(x: Tensor, weights: Any) -> None:
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0 * x, 1.0))
            with poutine.scale(scale=weights):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor, weights: Any) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(loc + x / 2, 0.5**0.5))

    x, ones = torch.randn(80), torch.ones(40)
    batches = [(x[:40], ones), (x[40:], 3 * ones)]
    fitted = fit(model, guide, batches, objective=TraceELBO(), max_epochs=20, learning_rate=1e-9)
    assert not fitted.warnings
    found = evaluate(model, guide, batches, num_samples=5)
    exact = dist.Normal(0.0, 2**0.5).log_prob(x)
    torch.testing.assert_close(found.log_likelihood.values, exact, atol=1e-5, rtol=0)
    assert any("weighted by poutine.scale ('x')" in note for note in found.notes)
