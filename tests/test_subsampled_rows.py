"""Pairs that draw their own rows, Pyro's way to train on minibatches: they take all the rows they are given."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import programs
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.poutine.subsample_messenger import SubsampleMessenger
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import ppl_vae
from ppl_vae.checks import PairWarning
from ppl_vae.objectives import ELBO, ImportanceWeightedELBO, Objective, TraceELBO
from ppl_vae.pairs import Pair, PairError, find_layout, take_all_rows
from ppl_vae.pairs.subsampling import Indices, Subsampling

LOADINGS = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
X = 1.5 * torch.randn(23, 3, generator=torch.Generator().manual_seed(1))
EVIDENCE = dist.MultivariateNormal(torch.zeros(3), LOADINGS.T @ LOADINGS + torch.eye(3)).log_prob(X)
"""log p(x) of each row of X at the start of a training."""

SELECT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "index_select": lambda x, index: x.index_select(0, index),
    "x[index]": lambda x, index: x[index],
    "index_select by name": lambda x, index: torch.index_select(input=x, dim=0, index=index),
    "take": lambda x, index: torch.stack([torch.take(column, index) for column in x.T], 1),
    "subsample": lambda x, index: pyro.subsample(x, event_dim=1),
}


def linear(part: int | None, how: str = "x[index]") -> tuple[Any, Any]:
    """x = z W + noise with the exact posterior as the guide, in a plate that draws `part` of the rows."""

    def rows(x: Tensor, index: Any) -> Tensor:
        return x if part is None else SELECT[how](x, index)

    def model(x: Tensor) -> None:
        scale = pyro.param("scale", torch.ones(3), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x), subsample_size=part) as index:
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ LOADINGS, scale).to_event(1), obs=rows(x, index))

    covariance = torch.linalg.inv(torch.eye(2) + LOADINGS @ LOADINGS.T)

    def guide(x: Tensor) -> None:
        shift = pyro.param("shift", torch.zeros(2))
        with pyro.plate("data", len(x), subsample_size=part) as index:
            loc = rows(x, index) @ LOADINGS.T @ covariance + shift
            pyro.sample("z", dist.MultivariateNormal(loc, covariance))

    return model, guide


@pytest.mark.parametrize("part", [5, 1, 30])  # 30: more than there are
@pytest.mark.parametrize("how", SELECT)
def test_the_evidence_of_each_row(part: int, how: str) -> None:
    pair = linear(part, how)
    assert ppl_vae.check(*pair, X).ok
    found = ppl_vae.evaluate(*pair, X, num_samples=5, seed=0)
    torch.testing.assert_close(found.log_likelihood.values, EVIDENCE, atol=1e-5, rtol=0)
    assert found.warnings == ()


@pytest.mark.parametrize(("part", "capture"), [(5, True), (5, False), (30, True)])
def test_a_training_is_that_of_the_same_pair_without_a_part(part: int, capture: bool) -> None:
    """Batches of 4, the last one of 3: the losses and, after steps of SGD, the parameters are the same."""

    def trained(part: int | None, objective: Objective) -> tuple[list[float], dict[str, Tensor]]:
        fitted = ppl_vae.fit(
            *linear(part),
            X,
            batch_size=4,
            max_epochs=4,
            objective=objective,
            optimizer=torch.optim.SGD,
            learning_rate=0.1,
            seed=0,
            capture=capture,
        )
        losses = [epoch["loss"] for epoch in fitted.history]
        return losses, Pair(fitted.model, fitted.guide).state()

    for objective in (ELBO(), ImportanceWeightedELBO(num_particles=3)):
        losses, state = trained(part, objective)
        others, other_state = trained(None, objective)
        assert losses == pytest.approx(others, abs=1e-6)
        assert state.keys() == other_state.keys() == {"param.scale", "param.shift"}
        assert float(state["param.shift"].abs().min()) > 0
        for name, value in state.items():
            torch.testing.assert_close(value, other_state[name], atol=1e-6, rtol=0)


def test_the_loss_is_exact_and_that_of_pyro_on_average() -> None:
    """With the exact posterior, each draw has the ELBO log p(x); Pyro's varies by its rows alone."""
    pair = linear(5)
    options: dict[str, Any] = {"objective": TraceELBO(), "max_epochs": 1, "learning_rate": 1e-9}
    fitted = ppl_vae.fit(*pair, X, batch_size=4, seed=0, **options)
    ours = -fitted.history[0]["loss"]
    assert ours == pytest.approx(float(EVIDENCE.mean()), abs=1e-5)
    torch.manual_seed(0)
    with pyro.get_param_store().scope():
        sums = torch.tensor([-Trace_ELBO().loss(*pair, X) for _ in range(1000)]) / len(X)
    assert float(sums.std()) > 0.1  # it draws 5 rows
    assert abs(float(sums.mean()) - ours) < 4 * float(sums.std()) / 1000**0.5


@pytest.mark.parametrize("kind", ["loader", "list"])
def test_batches_that_an_iterable_brings(kind: str) -> None:
    data: Any = DataLoader(TensorDataset(X), batch_size=4) if kind == "loader" else list(X.split(4))
    pair = linear(5)
    found = ppl_vae.evaluate(*pair, data, num_samples=5, seed=0)
    torch.testing.assert_close(found.log_likelihood.values, EVIDENCE, atol=1e-5, rtol=0)
    fitted = ppl_vae.fit(*pair, data, validation=data, max_epochs=1, seed=0, learning_rate=1e-9)
    history = fitted.history[0]
    assert history["validation_elbo"] == pytest.approx(float(EVIDENCE.mean()), abs=1e-5)
    assert fitted.steps == 6


def test_a_part_as_large_as_the_first_batch() -> None:
    """min(4, len(x)) draws nothing in batches of 4, but it does in the larger ones of held-out rows."""

    def pair(drawing: bool) -> tuple[Any, Any]:
        def plate(x: Tensor) -> Any:
            return pyro.plate("data", len(x), subsample_size=min(4, len(x)) if drawing else None)

        def model(x: Tensor) -> None:
            with plate(x):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                obs = pyro.subsample(x, event_dim=0)
                pyro.sample("x", dist.Normal(z, 1.0), obs=obs)

        def guide(x: Tensor) -> None:
            slope = pyro.param("slope", torch.tensor(0.4))
            with plate(x):
                pyro.sample("z", dist.Normal(slope * pyro.subsample(x, event_dim=0), 0.5**0.5))

        return model, guide

    one, other = (
        ppl_vae.fit(*pair(drawing), X[:, 0], validation=X[:, 1], batch_size=4, max_epochs=2, seed=0)
        for drawing in (True, False)
    )
    for name in ("loss", "validation_elbo"):
        assert [e[name] for e in one.history] == [e[name] for e in other.history]


FUNCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "annealed": lambda model, guide: (
        ppl_vae.annealed_importance_sampling(
            model, guide, X, num_steps=5, num_chains=2, seed=0
        ).log_likelihood.values
    ),
    "gaps": lambda model, guide: (
        ppl_vae.inference_gaps(model, guide, X, num_samples=20, max_steps=5, seed=0).elbo.values
    ),
    "diagnose": lambda model, guide: (
        ppl_vae.diagnose(model, guide, X, seed=0).mutual_information.mean
    ),
    "sample": lambda model, guide: ppl_vae.sample(model, 30, like=X, seed=0),
    "decode": lambda model, guide: ppl_vae.sample(
        model, 7, like=X, given={"z": torch.ones(7, 2)}, means=True
    ),
    "to_arviz": lambda model, guide: (
        ppl_vae.to_arviz(model, guide, X, num_samples=10, seed=0).posterior["z"].values
    ),
}


@pytest.mark.slow(only=("annealed", "to_arviz"))
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_gives_what_it_gives_without_a_part(name: str) -> None:
    values, others = (torch.as_tensor(FUNCTIONS[name](*linear(part))) for part in (5, None))
    assert values.numel()
    torch.testing.assert_close(values, others, atol=1e-5, rtol=0)


def test_em_and_a_refitted_guide() -> None:
    def mixture(part: int | None) -> Any:
        def model(x: Tensor) -> None:
            loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
            with pyro.plate("data", len(x), subsample_size=part) as index:
                k = pyro.sample(
                    "k", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"}
                )
                pyro.sample("x", dist.Normal(loc[k], 1.0), obs=x[index])

        return model

    histories = [
        ppl_vae.fit_em(mixture(part), X[:, 0], max_iterations=5, seed=0).history
        for part in (5, None)
    ]
    assert len({tuple(e["log_likelihood"] for e in history) for history in histories}) == 1
    refitted = []
    for part in (5, None):
        model, guide = linear(part)
        trained = ppl_vae.fit(model, guide, X, batch_size=4, max_epochs=1, seed=0).model
        again = ppl_vae.refit_guide(trained, guide, X, batch_size=4, max_epochs=2, seed=0)
        refitted.append([epoch["loss"] for epoch in again.history])
    assert refitted[0] == refitted[1]


# -- plates around the data --------------------------------------------------------------------------------

TOPICS = torch.tensor([[0.4, 0.3, 0.2, 0.05, 0.03, 0.02], [0.02, 0.03, 0.05, 0.2, 0.3, 0.4]])


def documents(part: int | None) -> tuple[Any, Any]:
    """LDA of two known topics: x is documents x words."""

    def model(x: Tensor) -> None:
        with pyro.plate("documents", len(x), subsample_size=part, dim=-1) as index:
            weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 0.7)))
            with pyro.plate("words", x.shape[1], dim=-2):
                topic = pyro.sample(
                    "topic", dist.Categorical(weights), infer={"enumerate": "parallel"}
                )
                pyro.sample("x", dist.Categorical(TOPICS[topic]), obs=x[index].T)

    def guide(x: Tensor) -> None:
        with pyro.plate("documents", len(x), subsample_size=part, dim=-1) as index:
            each = TOPICS[:, x[index]] / TOPICS[:, x[index]].sum(0)
            pyro.sample("weights", dist.Dirichlet(0.7 + 0.7 * each.sum(-1).T))

    return model, guide


@pytest.mark.parametrize(
    "number", [pytest.param(12, marks=pytest.mark.slow), 5]
)  # 5: as many documents as words
def test_documents_that_the_model_draws(number: int) -> None:
    """Against quadrature over the weight of the first topic."""
    x = torch.randint(6, (number, 5), generator=torch.Generator().manual_seed(0))
    weight = (torch.arange(20_000).double() + 0.5) / 20_000
    log_words = (
        weight[:, None] * TOPICS[0].double() + (1 - weight[:, None]) * TOPICS[1].double()
    ).log()
    prior = dist.Beta(torch.tensor(0.7).double(), torch.tensor(0.7).double()).log_prob(weight)
    truth = torch.stack([(prior + log_words[:, row].sum(1)).logsumexp(0) for row in x])
    truth -= math.log(len(weight))
    found = ppl_vae.evaluate(*documents(4), x, num_samples=1000, seed=0, method="guide")
    assert found.num_rows == number
    assert not found.cautions
    off = (found.log_likelihood.values.double() - truth).abs()
    assert float((off / (found.log_likelihood_error + 0.005)).max()) < 5
    one, other = (
        ppl_vae.fit(*_with_parameter(*documents(part)), x, batch_size=3, max_epochs=1, seed=0)
        for part in (4, None)
    )
    assert [e["loss"] for e in one.history] == [e["loss"] for e in other.history]


def _with_parameter(model: Any, guide: Any) -> tuple[Any, Any]:
    """With something to train."""

    def shifted(x: Tensor) -> None:
        pyro.factor("penalty", -(pyro.param("a", torch.tensor(1.0)) ** 2))
        model(x)

    return shifted, guide


@pytest.mark.parametrize("part", [None, 5])
def test_a_plate_inside_of_as_many_elements_as_rows_still_draws(part: int | None) -> None:
    """20 rows of 20 pixels, of which each run draws 5."""

    def model(x: Tensor) -> None:
        with pyro.plate("rows", len(x), subsample_size=part, dim=-2) as rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("pixels", 20, subsample_size=5, dim=-1) as pixels:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows][:, pixels])

    def guide(x: Tensor) -> None:
        with pyro.plate("rows", len(x), subsample_size=part, dim=-2) as rows:
            mean = x[rows].sum(1, keepdim=True) / 21
            pyro.sample("z", dist.Normal(mean, 21**-0.5))

    x = torch.randn(20, 20)
    found = ppl_vae.evaluate(model, guide, x, num_samples=200, seed=0, method="guide")
    assert found.num_rows == 20
    (warning,) = [w for w in found.warnings if "subsampled" in w]
    assert "plate 'pixels' inside of a row is subsampled (5 of 20)" in warning
    covariance = torch.eye(20) + torch.ones(20, 20)
    truth = dist.MultivariateNormal(torch.zeros(20), covariance).log_prob(x)
    spread = float(found.elbo.values.mean() - truth.mean())
    assert abs(spread) < 4  # unbiased: each number drawn counts four times


@pytest.mark.slow
def test_latents_of_all_rows_in_minibatches() -> None:
    """Told of as for any plate of the size of a batch; an autoguide over them takes minibatches."""

    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x), subsample_size=5) as index:
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x[index])

    x = 3.0 + torch.randn(40)
    guide = AutoNormal(model)
    with pytest.warns(PairWarning, match="the KL of 'mu' counts once in each batch"):
        ppl_vae.fit(model, guide, x, batch_size=10, max_epochs=1, seed=0)
    guide = AutoNormal(model)
    ppl_vae.fit(model, guide, x, batch_size=40, max_epochs=400, learning_rate=0.05, seed=0)
    assert float(guide.locs.mu.detach()) == pytest.approx(float(x.sum() / 40.01), abs=0.1)
    assert float(guide.scales.mu.detach()) == pytest.approx(40.01**-0.5, rel=0.3)


# -- parameters for each row -------------------------------------------------------------------------------


def by_hand(x: Tensor, number: int | None = None) -> tuple[Any, Any]:
    """x ~ N(z, 1) with the exact posterior of each row as parameters of the guide."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x) if number is None else number, subsample_size=5) as index:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

    def guide(rows: Tensor) -> None:
        locs = pyro.param("locs", lambda: x / 2)
        with pyro.plate("data", len(rows) if number is None else number, subsample_size=5) as index:
            pyro.sample("z", dist.Normal(locs[index], 0.5**0.5))

    return model, guide


@pytest.mark.parametrize("number", [None, 30])
def test_parameters_by_the_index_of_a_row(number: int | None) -> None:
    """With all rows at once they are right; in batches a row would get the parameters of another one."""
    x = 3 * torch.randn(30)
    pair = by_hand(x, number)
    found = ppl_vae.evaluate(*pair, x, num_samples=5, seed=0)
    truth = dist.Normal(0.0, 2**0.5).log_prob(x)
    torch.testing.assert_close(found.log_likelihood.values, truth, atol=1e-5, rtol=0)
    options: dict[str, Any] = {"max_epochs": 2, "learning_rate": 1e-9, "objective": TraceELBO()}
    fitted = ppl_vae.fit(*pair, x, batch_size=30, **options)
    assert fitted.history[-1]["loss"] == pytest.approx(-float(truth.mean()), abs=1e-4)
    with pytest.raises(PairError):
        ppl_vae.fit(*pair, x, batch_size=15, **options)
    with pytest.raises(PairError):
        ppl_vae.evaluate(*pair, x[:20], num_samples=5)
    if number is None:
        with pytest.raises(PairError, match="exactly these rows"):
            ppl_vae.fit(*pair, x, validation=x[:20], batch_size=30, **options)


def test_many_parameters_by_the_index_of_a_row() -> None:
    """Evaluation starts with the first 64 rows, unless the guide says that it keeps parameters for each."""
    x = 3 * torch.randn(100)
    model, guide = by_hand(x)
    with pytest.raises(
        PairError, match=r"select from 100 rows, while .* 64 rows.*keeps_rows = True"
    ):
        ppl_vae.evaluate(model, guide, x, num_samples=5)
    guide.keeps_rows = True
    found = ppl_vae.evaluate(model, guide, x, num_samples=5, seed=0)
    truth = dist.Normal(0.0, 2**0.5).log_prob(x)
    torch.testing.assert_close(found.log_likelihood.values, truth, atol=1e-5, rtol=0)
    with pytest.raises(PairError, match="keeps parameters for each row"):
        ppl_vae.fit(model, guide, x, batch_size=20)


def test_parameters_that_are_made_for_the_first_batch() -> None:
    """zeros(len(x)): made for 20 rows, or for the first 64 of 128, they would serve other rows as well."""
    model, _ = linear(5)

    def guide(x: Tensor) -> None:
        locs = pyro.param("locs", lambda: torch.zeros(len(x), 2))
        with pyro.plate("data", len(x), subsample_size=5) as index:
            pyro.sample("z", dist.Normal(locs[index], 1.0).to_event(1))

    x = torch.randn(128, 3)
    with pytest.raises(PairError, match="keeps parameters for each row"):
        ppl_vae.fit(model, guide, x, batch_size=20, max_epochs=1)
    with pytest.raises(PairError, match="exactly these rows"):
        ppl_vae.evaluate(model, guide, x, num_samples=5)


def test_autoguides_over_rows_that_are_drawn() -> None:
    """They keep parameters for each row, also if `create_plates` draws rows."""
    model, _ = linear(5)
    plates: Any = (None, lambda x: pyro.plate("data", len(x), subsample_size=5))
    for create in plates:
        guide = AutoNormal(model, create_plates=create)
        with pytest.raises(PairError, match="keeps parameters for each row"):
            ppl_vae.fit(model, guide, X, batch_size=4)
        guide = AutoNormal(model, create_plates=create)
        fitted = ppl_vae.fit(model, guide, X, batch_size=23, max_epochs=2, seed=0)
        assert guide.locs.z.shape == (23, 2)
        plain, _ = linear(None)
        other = ppl_vae.fit(plain, AutoNormal(plain), X, batch_size=23, max_epochs=2, seed=0)
        assert fitted.history[-1]["loss"] == pytest.approx(other.history[-1]["loss"], abs=0.5)


# -- what is refused ---------------------------------------------------------------------------------------


def scalar(
    plate: Callable[[Tensor], Any], rows: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Any, Any]:
    """x ~ N(z, 1) with the exact posterior as the guide."""

    def model(x: Tensor) -> None:
        with plate(x) as index:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=rows(x, index))

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.5))
        with plate(x) as index:
            pyro.sample("z", dist.Normal(slope * rows(x, index), 0.5**0.5))

    return model, guide


def test_a_number_of_rows_that_is_fixed() -> None:
    """100 rows, of which a run of the pair gets some: the line to write works."""
    x = torch.randn(100)
    pair = scalar(lambda x: pyro.plate("data", 100, subsample_size=20), SELECT["x[index]"])
    line = r'pyro.plate\("data", 100, subsample_size=len\(x\)\) and use x in place of x\[index\]'
    for batch_size in (10, 20, 30):
        with pytest.raises(PairError, match=line if batch_size != 20 else None):
            ppl_vae.fit(*pair, x, batch_size=batch_size, max_epochs=1)
    truth = dist.Normal(0.0, 2**0.5).log_prob(x)
    found = ppl_vae.evaluate(*pair, x, num_samples=5)  # all rows at once
    torch.testing.assert_close(found.log_likelihood.values, truth, atol=1e-5, rtol=0)
    pair = scalar(lambda x: pyro.plate("data", 100, subsample_size=len(x)), lambda x, index: x)
    for _ in range(2):
        found = ppl_vae.evaluate(*pair, x, num_samples=5, seed=0)
        torch.testing.assert_close(found.log_likelihood.values, truth, atol=1e-5, rtol=0)
        options: dict[str, Any] = {"objective": TraceELBO(), "learning_rate": 1e-9}
        for batch_size in (20, 100):
            fitted = ppl_vae.fit(*pair, x, batch_size=batch_size, max_epochs=1, **options)
            assert fitted.history[0]["loss"] == pytest.approx(-float(truth.mean()), abs=1e-5)
        pair = scalar(lambda x: pyro.plate("data", 100, subsample_size=20), lambda x, index: x[:20])
        x = x[:20]  # a number for the size of a batch
        truth = truth[:20]
        options["batch_size"] = 20


@pytest.mark.parametrize("part", [5, 20])
def test_data_that_are_no_argument(part: int) -> None:
    data = torch.randn(20)
    everything = scalar(
        lambda x: pyro.plate("data", len(x), subsample_size=part), lambda x, index: data[index]
    )
    found = ppl_vae.evaluate(*everything, data, num_samples=5, seed=0)
    truth = dist.Normal(0.0, 2**0.5).log_prob(data)
    torch.testing.assert_close(found.log_likelihood.values, truth, atol=1e-5, rtol=0)
    with pytest.raises(
        PairError, match="select from 20 rows, while the programs are given 10 rows"
    ):
        ppl_vae.fit(*everything, data, batch_size=10, max_epochs=1)
    fixed = scalar(
        lambda x: pyro.plate("data", 20, subsample_size=part), lambda x, index: data[index]
    )
    for rows in (10, part if part < 20 else 10):
        with pytest.raises(PairError):
            ppl_vae.fit(*fixed, data, batch_size=rows, max_epochs=1)
        with pytest.raises(PairError):
            ppl_vae.evaluate(*fixed, data[:rows], num_samples=5)


@pytest.mark.parametrize(
    "rows",
    [
        lambda x, index: x[index.tolist()],
        lambda x, index: x[index.numpy()],
        lambda x, index: torch.stack([x[i.item()] for i in index]),
        lambda x, index: x[index] + index / 100,
    ],
)
def test_indices_as_numbers(rows: Any) -> None:
    """What a program does with them cannot be followed."""
    pair = scalar(lambda x: pyro.plate("data", len(x), subsample_size=5), rows)
    words = r'used otherwise than in x\[index\]. .* write pyro.plate\("data", len\(x\)\) and use x in place'
    with pytest.raises(PairError, match=words):
        ppl_vae.evaluate(*pair, torch.randn(20), num_samples=5)


def test_rows_in_a_loop() -> None:
    def model(x: Tensor) -> None:
        for i in pyro.plate("data", len(x), subsample_size=5):
            z = pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))
            pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=x[int(i)])

    def guide(x: Tensor) -> None:
        for i in pyro.plate("data", len(x), subsample_size=5):
            pyro.sample(f"z_{i}", dist.Normal(x[int(i)] / 2, 0.5**0.5))

    with pytest.raises(PairError, match=r'inside `with pyro.plate\("data", x.shape\[0\]\):`'):
        ppl_vae.evaluate(model, guide, torch.randn(20), num_samples=5)


# -- the switch --------------------------------------------------------------------------------------------


def test_outside_of_the_library_the_programs_draw_as_before() -> None:
    before = SubsampleMessenger.__init__
    model, guide = linear(5)
    fitted = ppl_vae.fit(model, guide, X, batch_size=4, max_epochs=1, seed=0)
    assert SubsampleMessenger.__init__ is before
    drawn = Predictive(fitted.model, guide=fitted.guide, num_samples=3)(X)
    assert drawn["z"].shape == (3, 5, 2)
    with pytest.raises(ValueError, match="mine"), Pair(model, guide).scope():  # also after an error
        raise ValueError("mine")
    assert SubsampleMessenger.__init__ is before


def test_indices_are_where_the_rows_are() -> None:
    """So that index_select works on a GPU; a device that the plate was given stays."""
    subsampling = Subsampling()
    subsampling.takes_all["data"] = True
    subsampling.device = torch.device("meta")
    with subsampling.watched():
        assert pyro.plate("data", 4, subsample_size=2, dim=-1).indices.device.type == "meta"
        given = pyro.plate("data", 4, subsample_size=2, dim=-1, device="cpu")
        assert given.indices.tolist() == [0, 1, 2, 3]


def test_pairs_without_a_part_are_not_run_once_more() -> None:
    runs = 0
    model, guide = linear(None)

    def counted(x: Tensor) -> None:
        nonlocal runs
        runs += 1
        model(x)

    pair = Pair(counted, guide)
    with pair.scope():
        assert not take_all_rows(pair, X)
        assert runs == 0
        with torch.random.fork_rng():
            guide(X)
        assert not take_all_rows(pair, X)
    assert runs == 0


def test_a_plate_is_found_by_its_rows() -> None:
    model, guide = documents(3)
    pair = Pair(model, guide)
    x = torch.randint(6, (5, 5))
    with pair.scope():
        guide(x)
        assert take_all_rows(pair, x)
        assert find_layout(pair, x).plate == "documents"
        assert pair.subsampling.takes_all == {"documents": True}
        assert not pair.keeps_rows


def test_what_indices_select_from() -> None:
    uses: set[int] = set()
    index = Indices.of(torch.arange(2), uses)
    x = torch.zeros(3, 4, 5, 6)
    selections: list[tuple[Callable[[], Any], set[int]]] = [
        (lambda: x[index], {3}),
        (lambda: x[:, index], {4}),
        (lambda: x[..., index, :], {5}),
        (lambda: x[None, :, index], {4}),
        (lambda: x[..., index], {6}),
        (lambda: x.index_select(1, index), {4}),
        (lambda: x.index_select(dim=-1, index=index), {6}),
        (lambda: torch.index_select(x, 2, index), {5}),
        (lambda: torch.index_select(input=x, dim=2, index=index), {5}),
        (lambda: x[0, 0].gather(0, index[:, None]), {5}),
        (lambda: torch.gather(input=x[0, 0], dim=1, index=index[:, None]), {6}),
        (lambda: x[:, 0, 0, 0].take(index), {3}),
        (lambda: torch.take(x, index), {0}),
        (lambda: torch.nn.Embedding(7, 2)(index), {7}),
        (lambda: x[index.long().clone() + 1], {3}),
        (lambda: x[[True, False, True]][index], {2}),
        (lambda: (len(index), index.shape, index.device, index.numel(), repr(index)), set()),
        (lambda: torch.zeros_like(index, dtype=torch.float32), set()),
        (lambda: index.new_zeros(3), set()),
        (lambda: index.float(), {0}),
        (lambda: index < 1, {0}),
        (lambda: index.tolist(), {0}),
        (lambda: index.numpy(), {0}),
        (lambda: [int(i) for i in index], {0}),
        (lambda: [x[i] for i in index], {3}),
        (lambda: int(index[0]), {0}),
    ]
    for number, (select, sizes) in enumerate(selections):
        uses.clear()
        found = select()
        assert uses == sizes, number
        assert not isinstance(found, Indices)


# -- a plate of all the rows given, whose index selects parameters for each row ---------------------------


def own_locs(num: int) -> Any:
    """q(z_i) = N(loc_i, 1/2): parameters for each of `num` rows, by the index of the plate."""

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", lambda: torch.zeros(num))
        with pyro.plate("data", len(x)) as index:
            pyro.sample("z", dist.Normal(loc[index], 0.5**0.5))

    return guide


plain = programs.normal


def test_parameters_that_a_plates_index_selects_need_all_rows_at_once() -> None:
    """In batches, the first parameters would be those of the first rows of every batch."""
    x = torch.randn(150, generator=torch.Generator().manual_seed(2)) * 1.4
    guide = own_locs(150)
    with pytest.raises(PairError, match="keeps parameters for each row"):
        ppl_vae.fit(plain, guide, x, batch_size=50, max_epochs=1)
    options: dict[str, Any] = {"batch_size": 150, "max_epochs": 300, "learning_rate": 0.05}
    fitted = ppl_vae.fit(plain, guide, x, seed=0, **options)
    exact = dist.Normal(0.0, 2**0.5).log_prob(x)
    # evaluate runs 64 rows at once, of a pair that may be taken apart.
    found = ppl_vae.evaluate(fitted.model, fitted.guide, x, num_samples=200, seed=0, method="guide")
    torch.testing.assert_close(found.log_likelihood.values.float(), exact, atol=0.2, rtol=0)
    assert float((found.elbo.values - exact).mean()) > -0.05


def test_other_rows_have_no_parameters() -> None:
    x = torch.randn(40, generator=torch.Generator().manual_seed(2))
    guide = own_locs(40)
    with pytest.raises(
        PairError, match="validation: the pair keeps parameters for each of the rows"
    ):
        ppl_vae.fit(plain, guide, x, batch_size=40, max_epochs=1, validation=x[20:])
    fitted = ppl_vae.fit(plain, guide, x, batch_size=40, max_epochs=1, seed=0)
    with pytest.raises(PairError, match=r"select from 40 rows, .* but 20 rows are given in all"):
        ppl_vae.evaluate(fitted.model, fitted.guide, x[20:], num_samples=3)


def test_an_index_that_selects_from_the_rows_given_needs_nothing() -> None:
    """Nor one whose values are used otherwise, or of a plate inside of the rows'."""
    weights = torch.ones(5)

    def guide(x: Tensor) -> None:
        pixels = pyro.plate("pixels", 5, dim=-1)
        with pyro.plate("data", len(x), dim=-2) as index, pixels as j:
            assert index is not None
            loc = x[index] / 2 * weights[j]
            assert len(index.tolist()) == len(x)
            pyro.sample("z", dist.Normal(loc, 0.5**0.5))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2), pyro.plate("pixels", 5, dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = torch.randn(100, 5)
    found = ppl_vae.evaluate(model, guide, x, num_samples=3, seed=0)
    exact = dist.Normal(0.0, 2**0.5).log_prob(x).sum(1)
    torch.testing.assert_close(found.log_likelihood.values.float(), exact, atol=1e-4, rtol=1e-5)
    pair = Pair(model, guide)
    with pair.scope():
        find_layout(pair, x[:10])
        assert not pair.keeps_rows
