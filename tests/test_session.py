"""An opened pair: checked, in evaluation mode, its rows in chunks, whatever the rows come as."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ppl_vae import check, diagnose, evaluate, inference_gaps
from ppl_vae.checks import opened
from ppl_vae.guides import Exact, FullCovariance, MeanField, PerRow
from ppl_vae.likelihoods import Bernoulli
from ppl_vae.models import VAE, ProbabilisticPCA
from ppl_vae.networks import MLP
from ppl_vae.pairs import PairError, num_rows, tensors_of


def pair() -> tuple[ProbabilisticPCA, MeanField]:
    torch.manual_seed(0)
    return ProbabilisticPCA((3,), 2), MeanField((3,), 2, MLP((4,)))


@pytest.mark.parametrize("size", [1, 7, 100, 1000])
def test_chunks_are_all_rows_in_order_on_their_own(size: int) -> None:
    x = torch.arange(300.0).reshape(100, 3)
    with opened(*pair(), x) as session:
        assert session.num_rows == 100
        chunks = list(session.chunks(size))
    assert all(isinstance(chunk, Tensor) and len(chunk) <= size for chunk in chunks)
    assert torch.equal(torch.cat(chunks), x)  # type: ignore[arg-type]


def test_a_loader_s_batches_are_cut_and_its_whole_first_batch_is_checked() -> None:
    x = torch.randn(250, 3)
    with opened(*pair(), DataLoader(x, batch_size=100)) as session:  # type: ignore[arg-type]
        assert session.num_rows is None
        assert len(session.first) == 64
        chunks = list(session.chunks(64))
    assert [len(chunk) for chunk in chunks] == [64, 36, 64, 36, 50]
    assert torch.equal(torch.cat(chunks), x)  # type: ignore[arg-type]
    x[90] = torch.nan
    with (
        pytest.raises(PairError, match="NaN in 1 of the 100 rows"),
        opened(*pair(), DataLoader(x, batch_size=100)),  # type: ignore[arg-type]
    ):
        pass


def test_inside_there_are_no_gradients_no_dropout_and_a_generator_of_its_own() -> None:
    torch.manual_seed(0)
    network = MLP((4,))
    model, guide = VAE((3,), 2, network), MeanField((3,), 2, network)
    guide.head = nn.Sequential(guide.head, nn.Dropout(0.5))  # type: ignore[assignment]
    x = (torch.rand(5, 3) > 0.5).float()
    before = torch.get_rng_state()
    with opened(model, guide, x, seed=3):
        assert not torch.is_grad_enabled()
        assert not model.training
        assert not guide.training
        one = torch.rand(())
    assert model.training
    assert guide.training
    assert torch.equal(torch.get_rng_state(), before)
    with opened(model, guide, x, seed=3):
        assert torch.equal(torch.rand(()), one)


class Jittered(Dataset[torch.Tensor]):
    """Rows that draw from every global generator as they are read."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> torch.Tensor:
        return 0.1 * torch.rand(3) + float(np.random.rand()) + random.random()


def generators(loader: DataLoader[torch.Tensor]) -> list[Any]:
    state: Any = np.random.get_state()
    torch_states = [torch.get_rng_state().tolist(), loader.generator.get_state().tolist()]
    return [*torch_states, state[1].tolist(), state[2:], random.getstate()]


def test_loaders_leave_the_generators_alone() -> None:
    """A loader draws a seed whenever it is read. `check` changes nothing, not even a loader's own generator."""
    both, own = pair(), torch.Generator().manual_seed(0)
    loader = DataLoader(Jittered(), batch_size=3, shuffle=True, generator=own)
    plain = DataLoader(Jittered(), batch_size=3)
    for rows in (loader, plain):
        before = generators(loader)
        check(*both, rows)
        assert generators(loader) == before
    runs: list[Callable[[], Tensor]] = [
        lambda: evaluate(*both, plain, num_samples=2, seed=0).elbo.values,
        lambda: diagnose(*both, plain, seed=0).kl,
        lambda: inference_gaps(*both, plain, num_samples=2, max_steps=1, seed=0).elbo.values,
    ]
    for run in runs:
        first = run()
        assert generators(loader) == before
        _ = torch.rand(1), np.random.rand(), random.random()
        before = generators(loader)
        assert torch.equal(run(), first)
        assert generators(loader) == before


def test_a_guide_with_rows_of_its_own_gets_all_of_them_at_once() -> None:
    x = torch.randn(70, 3)
    model, _ = pair()
    guide = PerRow(FullCovariance((3,), 2, MLP((4,))), x)
    with opened(model, guide, x) as session:
        assert len(session.first) == 70
        assert session.rows_at_once(10**6) == 70
        assert session.chunk_sizes(4)[0] == 70
    with (
        pytest.raises(ValueError, match="pass x as one tensor"),
        opened(model, guide, DataLoader(x, batch_size=70)),  # type: ignore[arg-type]
    ):
        pass


@pytest.mark.parametrize("rows", ["vectorized", "one draw at a time"])
def test_chunks_of_programs_of_many_small_operations_are_larger(
    rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would else run on few rows at a time, though little of what they compute is there at once."""
    operations = 0

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            if rows != "vectorized":
                assert z.ndim == 1
            y = z[..., None].expand(*z.shape, 16)
            for _ in range(operations):
                y = y + 1.0
            y = y - operations
            pyro.sample("x", dist.Normal(y, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, 0], 1.0))

    monkeypatch.setattr("ppl_vae.checks.session.MEMORY_BUDGET", 2**22)
    sizes = {}
    for operations in (100, 200, 600, 1200, 4800):
        with opened(model, guide, torch.randn(64, 16)) as session:
            assert session.layout.vectorizes == (rows == "vectorized")
            sizes[operations] = math.prod(session.chunk_sizes(10**6))
    # Bytes per sample grow as the operations do; 4 MiB / (200 operations x 64 bytes) = 327 samples. A chunk of
    # vectorized samples has 64 rows, and as many samples as fit.
    assert 512 <= sizes[100] < 656
    assert 320 <= sizes[200] < 360
    assert 256 <= sizes[600] < 300
    assert 256 <= sizes[1200] < 280
    assert 64 <= sizes[4800] < 120  # 8 budgets are the most: 4,800 / 256 > 8


def test_all_rows_can_be_asked_for_at_once() -> None:
    with opened(*pair(), torch.randn(70, 3), whole=True) as session:
        assert len(session.first) == 70


def test_nothing_is_left_behind_by_an_error_inside() -> None:
    model, guide = pair()

    def with_parameter(x: Tensor) -> None:
        pyro.param("unused", torch.tensor(1.0))
        guide(x)

    x = torch.randn(4, 3)
    state = torch.get_rng_state()
    with pytest.raises(KeyError), opened(model, with_parameter, x, seed=0):
        raise KeyError
    assert torch.equal(torch.get_rng_state(), state)
    assert not list(pyro.get_param_store().keys())
    assert torch.is_grad_enabled()


def test_draws_start_at_the_seed_where_that_is_asked_for() -> None:
    x = torch.zeros(5, 3)
    first = []
    for start_at_seed in (True, False):
        with opened(*pair(), x, seed=3, draws_start_at_seed=start_at_seed):
            first.append(torch.rand(4))
    torch.manual_seed(3)
    assert torch.equal(first[0], torch.rand(4))
    assert not torch.equal(first[1], first[0])


def test_the_programs_see_the_seed_as_they_would_alone() -> None:
    model, guide = pair()
    x = torch.zeros(5, 3)
    with opened(model, guide, x, seed=7, draws_start_at_seed=True) as session:
        inside = poutine.trace(poutine.uncondition(session.pair.model)).get_trace(x)
    torch.manual_seed(7)
    alone = poutine.trace(poutine.uncondition(model)).get_trace(x)
    for name in ("z", "x"):
        assert torch.equal(inside.nodes[name]["value"], alone.nodes[name]["value"])  # type: ignore[arg-type]


@pytest.mark.parametrize("as_loader", [False, True])
@pytest.mark.parametrize(("bad", "words"), [(0.5, "outside of the support"), (math.nan, "NaN")])
def test_later_rows_are_looked_at_as_they_come(as_loader: bool, bad: float, words: str) -> None:
    """Even where Pyro validates nothing: grays have a density under Bernoulli."""
    x = torch.rand(150, 4, generator=torch.Generator().manual_seed(0)).round()
    x[130, 2] = bad
    data: Any = DataLoader(x, batch_size=50) if as_loader else x  # type: ignore[arg-type]
    model = VAE((4,), 2, MLP((8,)), likelihood=Bernoulli())
    guide = MeanField((4,), 2, MLP((8,)))
    for call in (evaluate, diagnose):
        with (
            pyro.validation_enabled(False),
            pytest.raises(PairError, match=rf"^row 130 of x \(counted from 0\).*{words}"),
        ):
            call(model, guide, data, seed=0, progress=False)


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_rows_of_a_loader_are_spread_as_evenly(size: int) -> None:
    """Each k-th row, in order, between as many as asked for and twice as many; whatever its batches."""
    model = ProbabilisticPCA((1,))
    x = torch.arange(1000.0).unsqueeze(-1)
    batches = list(x.split(size))
    with opened(model, Exact(model), batches, progress=False) as session:
        (rows,) = session.spread(60)
    found = tensors_of(rows)[0][:, 0]
    assert found.tolist() == x[:: int(found[1]), 0].tolist()
    assert 60 <= len(found) < 120


def test_sorted_rows_do_not_hide_what_most_rows_show() -> None:
    """The first rows are all the same: the guide's lag, and the decoder's dependencies, show in others."""
    x = torch.cat([torch.zeros(200, 1), torch.randn(300, 1)])
    model = ProbabilisticPCA((1,))
    with opened(model, Exact(model), x, progress=False) as session:
        spread = session.with_first(session.spread(400))
        assert num_rows(spread.first) == num_rows(session.first)
        share = float((tensors_of(spread.first)[0] != 0).double().mean())
    assert share == pytest.approx(0.6, abs=0.02)
