"""Which plate holds the rows, and whether an autoguide keeps parameters for each of them."""

from __future__ import annotations

import math
import warnings
from typing import Any

import programs
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer.autoguide import (
    AutoDelta,
    AutoGuideList,
    AutoMultivariateNormal,
    AutoNormal,
    init_to_value,
)
from torch import Tensor
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

import ppl_vae
from ppl_vae.checks import PairWarning
from ppl_vae.pairs import Batches, Pair, PairError, find_layout

WORDS, TOPICS = 6, 3


class LDA:
    """Topics of documents; the data are words x documents, or the other way round."""

    def __init__(self, words_first: bool, documents: int, words: int) -> None:
        self.words_first = words_first
        self.sizes = (documents, words)
        torch.manual_seed(1)
        self.topics = dist.Dirichlet(torch.ones(WORDS)).sample((TOPICS,))

    def model(self, x: Tensor) -> None:
        counts = x if self.words_first else x.T
        with pyro.plate("documents", counts.shape[1], dim=-1):
            weights = pyro.sample("weights", dist.Dirichlet(torch.ones(TOPICS)))
            with pyro.plate("words", counts.shape[0], dim=-2):
                pyro.sample("x", dist.Categorical(weights @ self.topics), obs=counts)

    def guide(self, x: Tensor) -> None:
        counts = x if self.words_first else x.T
        seen = torch.nn.functional.one_hot(counts, WORDS).sum(0).float() @ self.topics.T
        with pyro.plate("documents", counts.shape[1], dim=-1):
            pyro.sample("weights", dist.Dirichlet(0.5 + seen))

    def data(self) -> Tensor:
        documents, words = self.sizes
        weights = dist.Dirichlet(torch.ones(TOPICS)).sample((documents,))
        x: Tensor = dist.Categorical(weights @ self.topics).sample((words,))
        return x if self.words_first else x.T.contiguous()


@pytest.mark.parametrize("documents", [20, 12])  # 12: as many documents as words
def test_words_by_documents_is_told(documents: int) -> None:
    """The first dimension of x is words: the rows are words, which share the weights of all documents."""
    lda = LDA(True, documents, 12)
    x = lda.data()
    report = ppl_vae.check(lda.model, lda.guide, x)
    (problem,) = [p for p in report.problems if p.site == "weights"]
    assert problem.severity == "warning"
    assert "the 12 of 'words', the first dimension of x" in problem.message
    assert "x.transpose(0, 1)" in problem.message
    found = ppl_vae.evaluate(lda.model, lda.guide, x, num_samples=20, seed=0)
    assert found.num_rows == 12
    assert problem.message in found.warnings


@pytest.mark.parametrize("documents", [pytest.param(20, marks=pytest.mark.slow), 12])
def test_documents_by_words(documents: int) -> None:
    """With documents first, log p(x) of each is that by quadrature over the simplex, and nothing is told."""
    lda = LDA(False, documents, 12)
    x = lda.data()
    assert ppl_vae.check(lda.model, lda.guide, x).ok
    found = ppl_vae.evaluate(lda.model, lda.guide, x, num_samples=4000, seed=0, method="guide")
    assert found.num_rows == documents
    assert not found.cautions
    steps = 400
    i, j = torch.meshgrid(torch.arange(steps), torch.arange(steps), indexing="ij")
    a, b = (i + 1 / 3) / steps, (j + 1 / 3) / steps
    inside = (a + b) < 1
    weights = torch.stack([a, b, 1 - a - b], -1)[inside].double()
    log_words = (weights @ lda.topics.double()).log()
    log_p = torch.stack([log_words[:, row].sum(1) for row in x])
    truth = torch.logsumexp(log_p, 1) - math.log(len(weights))
    off = (found.log_likelihood.values.double() - truth).abs()
    assert float((off / (found.log_likelihood_error + 0.005)).max()) < 5


def square(x: Tensor) -> None:
    """Five rows of five features; the plate of the features is the outer one."""
    with pyro.plate("features", x.shape[1], dim=-2), pyro.plate("rows", x.shape[0], dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x.T)


def exact_square(x: Tensor) -> None:
    with pyro.plate("features", x.shape[1], dim=-2), pyro.plate("rows", x.shape[0], dim=-1):
        pyro.sample("z", dist.Normal(x.T / 2, 0.5**0.5))


@pytest.mark.parametrize("kind", ["amortized", "autoguide"])
def test_as_many_features_as_rows(kind: str) -> None:
    x = torch.randn(5, 5) * torch.tensor([0.1, 1.0, 2.0, 4.0, 8.0])
    guide: Any = exact_square
    if kind == "autoguide":
        start = init_to_value(values={"z": x.T / 2})
        guide = AutoNormal(square, init_loc_fn=start, init_scale=0.5**0.5)
    found = ppl_vae.evaluate(square, guide, x, num_samples=30, seed=0)
    truth = dist.Normal(0.0, 2**0.5).log_prob(x).sum(1)
    torch.testing.assert_close(found.log_likelihood.values, truth, atol=1e-3, rtol=0)


def test_one_row_of_one_feature() -> None:
    x = torch.tensor([[0.3]])
    pair = Pair(square, exact_square)
    with pair.scope():
        assert find_layout(pair, x).plate == "rows"


def test_a_plate_of_the_rows_size_by_chance() -> None:
    """Rows are in no plate, and there happen to be as many pixels as rows."""

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0).to_event(1))
        with pyro.plate("pixels", x.shape[1], dim=-1):
            pyro.sample("x", dist.Normal(z.expand(x.T.shape), 1.0).to_event(1), obs=x.T)

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0).to_event(1))

    with pytest.raises(PairError, match="plate 'pixels' has as many elements as there are rows"):
        ppl_vae.evaluate(model, guide, torch.randn(4, 4), num_samples=10)
    with pytest.raises(PairError, match="not inside a plate over the 4 rows"):
        ppl_vae.evaluate(model, guide, torch.randn(4, 3), num_samples=10)


# -- autoguides ------------------------------------------------------------------------------------------

N = 200


def shared_mean(x: Tensor) -> None:
    """mu ~ N(0, 0.2^2), x_i ~ N(mu, 1), in batches: a wrong weight of the batch would move the mean by 0.5."""
    mu = pyro.sample("mu", dist.Normal(0.0, 0.2))
    with pyro.plate("data", N, subsample_size=len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def rows_of_shared_mean() -> tuple[Tensor, Tensor, Tensor]:
    """Rows, and mean and standard deviation of the posterior of mu."""
    x = 3.0 + torch.randn(N)
    precision = torch.tensor(25.0 + N)
    return x, x.sum() / precision, precision.rsqrt()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "loader"),
    [(AutoNormal, True), pytest.param(AutoMultivariateNormal, False, marks=pytest.mark.slow)],
)
def test_autoguides_over_shared_latents_take_minibatches(make: Any, loader: bool) -> None:
    x, mean, scale = rows_of_shared_mean()
    guide = make(shared_mean)
    data: Any = DataLoader(TensorDataset(x), batch_size=50) if loader else x
    options: dict[str, Any] = {"batch_size": 50, "seed": 0}
    fitted = ppl_vae.fit(shared_mean, guide, data, max_epochs=150, learning_rate=0.02, **options)
    if make is AutoNormal:
        loc, spread = guide.locs.mu.detach(), guide.scales.mu.detach()
    else:
        loc, spread = guide.loc.detach()[0], (guide.scale * guide.scale_tril[0, 0]).detach()[0]
    assert abs(float(loc - mean)) < 0.05
    assert abs(math.log(float(spread / scale))) < 0.3
    assert fitted.steps == 150 * 4


def test_autodelta_over_shared_latents_takes_minibatches() -> None:
    x, mean, _ = rows_of_shared_mean()
    guide = AutoDelta(shared_mean)
    ppl_vae.fit(shared_mean, guide, x, max_epochs=80, batch_size=40, learning_rate=0.02, seed=0)
    assert abs(float(guide.mu.detach() - mean)) < 0.05


def plain_plate(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def test_a_plate_that_takes_a_batch_for_all_of_the_data() -> None:
    """Its shared latents' KL counts once in each batch: told in batches, not with all rows at once."""
    x, _, _ = rows_of_shared_mean()
    with pytest.warns(PairWarning, match="the KL of 'mu' counts once in each batch"):
        ppl_vae.fit(plain_plate, AutoNormal(plain_plate), x, max_epochs=1, batch_size=50)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ppl_vae.fit(plain_plate, AutoNormal(plain_plate), x, max_epochs=1, batch_size=N)
        ppl_vae.fit(shared_mean, AutoNormal(shared_mean), x, max_epochs=1, batch_size=50)


def both_kinds(x: Tensor) -> None:
    """mu ~ N(0, 0.2^2), z_i ~ N(mu, 1), x_i ~ N(z_i, 1)."""
    mu = pyro.sample("mu", dist.Normal(0.0, 0.2))
    with pyro.plate("data", N, subsample_size=len(x)):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_an_autoguide_with_an_amortized_part() -> None:
    torch.manual_seed(3)
    x = 3.0 + 2**0.5 * torch.randn(N)
    precision = 25 + N / 2
    mean = float(x.sum() / 2 / precision)
    net = torch.nn.Linear(1, 1)

    def amortized(x: Tensor) -> None:
        loc = net(x.unsqueeze(-1)).squeeze(-1)
        with guide.plates["data"]:
            pyro.sample("z", dist.Normal(loc, 0.5**0.5))

    def rows(x: Tensor) -> Any:
        return pyro.plate("data", N, subsample_size=len(x))

    guide = AutoGuideList(both_kinds, create_plates=rows)
    part = AutoNormal(poutine.block(both_kinds, hide=["z"]))
    guide.append(part)
    guide.append(amortized)
    ppl_vae.fit(both_kinds, guide, x, max_epochs=60, batch_size=50, learning_rate=0.06, seed=0)
    assert abs(float(part.locs.mu.detach()) - mean) < 0.15
    assert abs(float(net.weight.detach()) - 0.5) < 0.1  # E[z | x, mu] = (x + mu) / 2
    assert abs(float(net.bias.detach()) - mean / 2) < 0.3


local = programs.normal


def calls_an_autoguide(x: Tensor) -> Any:
    return _auto(x)


_auto = AutoNormal(local)


def test_autoguides_with_parameters_for_each_row() -> None:
    """They are refused in batches: also when a function calls them, or the plate is addressed by index."""

    def by_index(x: Tensor, i: Tensor) -> None:
        with pyro.plate("data", N, subsample=i):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x, i = torch.randn(N), torch.arange(N)
    for model, guide, data in (
        (local, AutoNormal(local), x),
        (local, calls_an_autoguide, x),
        (both_kinds, AutoNormal(both_kinds), x),
        (by_index, AutoNormal(by_index), (x, i)),
    ):
        with pytest.raises(PairError, match="keeps parameters for each row"):
            ppl_vae.fit(model, guide, data, max_epochs=1, batch_size=50)


def test_an_autoguide_with_rows_by_index() -> None:
    """With `create_plates` each batch gets the parameters of its own rows."""

    def by_index(x: Tensor, i: Tensor) -> None:
        with pyro.plate("data", N, subsample=i):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x, i = 3 * torch.randn(N), torch.arange(N)
    guide = AutoNormal(by_index, create_plates=lambda x, i: pyro.plate("data", N, subsample=i))
    ppl_vae.fit(by_index, guide, (x, i), max_epochs=75, batch_size=100, learning_rate=0.1, seed=0)
    assert float((guide.locs.z.detach() - x / 2).abs().mean()) < 0.2
    order = torch.randperm(N)
    found = ppl_vae.evaluate(
        by_index, guide, (x[order], i[order]), num_samples=500, seed=0, method="guide"
    )
    truth = dist.Normal(0.0, 2**0.5).log_prob(x[order])
    torch.testing.assert_close(found.log_likelihood.values, truth, atol=0.3, rtol=0)


def test_what_a_model_alone_cannot_show() -> None:
    """A model that needs exactly its rows: its autoguide is taken to keep them, as before."""
    data = torch.randn(30)

    def fixed(x: Tensor) -> None:
        with pyro.plate("data", 30):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x + 0 * data)

    pair = Pair(fixed, AutoNormal(fixed))
    Batches(data, pair)
    assert pair.keeps_rows


def test_an_autoguide_and_a_transform() -> None:
    """The model runs on transformed rows alone; its latent is shared by all of them."""

    def model(x: Tensor) -> None:
        assert x.dtype == torch.float32, "not transformed"
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("data", N, subsample_size=len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    x = torch.arange(N).to(torch.uint8)
    guide = AutoNormal(model)
    fitted = ppl_vae.fit(
        model, guide, x, transform=lambda x: x.float(), max_epochs=1, batch_size=50
    )
    assert fitted.steps == 4


def test_the_last_batch_of_a_loader_is_that_of_its_sampler() -> None:
    """128 of 129 rows: no batch has a single row, on which batch norm would fail."""
    norm = torch.nn.BatchNorm1d(1)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(norm(x.unsqueeze(-1)).squeeze(-1), 1.0))

    data = TensorDataset(torch.randn(129))
    some = SubsetRandomSampler(range(128))
    ppl_vae.fit(local, guide, DataLoader(data, batch_size=64, sampler=some), max_epochs=1)
    with pytest.raises(PairError, match="the 1 row that the last batch"):
        ppl_vae.fit(local, guide, DataLoader(data, batch_size=64), max_epochs=1)


def test_the_check_of_the_last_batch_leaves_no_trace() -> None:
    """Neither in the statistics of batch norm, nor in a buffer that a program assigns anew."""

    class Counting(torch.nn.Module):
        count: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.loc = torch.nn.Parameter(torch.zeros(()))
            self.norm = torch.nn.BatchNorm1d(1)
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x: Tensor) -> None:
            if self.training:
                self.count = self.count + 1
            loc = self.norm(x.unsqueeze(-1)).squeeze(-1) + self.loc
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(loc, 1.0))

    guide = Counting()
    ppl_vae.fit(local, guide, torch.randn(25), max_epochs=1, batch_size=10, capture=False)
    assert int(guide.count) == 3
    assert int(guide.norm.num_batches_tracked) == 3  # type: ignore[arg-type]
