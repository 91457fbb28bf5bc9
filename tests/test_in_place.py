"""Programs that write in place: a recording computes what Pyro does, in the first run and in later ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_vae import fit
from ppl_vae.capture import CaptureError, importance_weights as weighing, recorded, step as capture
from ppl_vae.capture.graphs import simplify
from ppl_vae.capture.memory import sharing_memory, written_nodes
from ppl_vae.capture.substitutions import join_logarithms
from ppl_vae.evaluation import annealed_importance_sampling, evaluate
from ppl_vae.objectives import Resolved, TraceELBO
from ppl_vae.pairs import Layouts, Pair

N, D = 4, 3
"""Rows of a batch, numbers in a row; there are two latents."""


@pytest.fixture(autouse=True)
def record_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "RECORD_AFTER", 0)


class Model(nn.Module):
    """A linear model whose weight, from two latents to three numbers, a program fills in place."""

    def __init__(self, weight: Callable[[Model, Tensor], Tensor]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.3))
        self.register_buffer("counts", torch.zeros(2, 3))
        self.counts: Tensor
        self.listed = [torch.zeros(2, 3)]
        self.weight = weight

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = z @ self.weight(self, x) + self.scale
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)


class Guide(nn.Module):
    """A mean-field guide whose location a program fills in place."""

    def __init__(self, fill: Callable[[Guide, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(D, 2)
        self.fill = fill

    def forward(self, x: Tensor) -> None:
        loc = self.linear(x) if self.fill is None else self.fill(self, x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 0.7).to_event(1))


def design(self: Model, x: Tensor) -> Tensor:
    A = torch.zeros(2, 3)
    for i in range(2):
        A[i, i:] += 1.0
    return A


def literal(self: Model, x: Tensor) -> Tensor:
    A = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    A[0] += 1.0
    return A


def iterated(self: Model, x: Tensor) -> Tensor:
    A = torch.zeros(2, 3)
    for row in A:
        row += 0.5
    return A


def strided(self: Model, x: Tensor) -> Tensor:
    A = torch.zeros(2, 3)
    A.view(-1)[::2] += 0.5
    return A


def scaled(self: Model, x: Tensor) -> Tensor:
    A = torch.arange(6.0).view(2, 3)
    A[1] *= 1.1
    return 0.1 * A


def with_a_parameter(self: Model, x: Tensor) -> Tensor:
    A = torch.zeros(2, 3)
    A[0] += self.scale
    return A


def with_the_data(self: Model, x: Tensor) -> Tensor:
    A = torch.zeros(2, 3)
    A[:, 0] += x.mean()
    return A


def pieces(self: Model, x: Tensor) -> Tensor:
    A = torch.ones(2, 3)
    first, second = A.split(1)
    first.mul_(0.5)
    for column in second.chunk(3, -1):
        column += 0.1
    A.unbind(1)[2].sub_(0.2)
    return A


def narrowed(self: Model, x: Tensor) -> Tensor:
    A = torch.zeros(2, 3)
    A.narrow(1, 1, 2).add_(0.5)
    A.T[0] += 0.3
    torch.diagonal(A).add_(1.0)
    return A


def detached(self: Model, x: Tensor) -> Tensor:
    A = torch.ones(2, 3)
    A.detach()[0] += 0.5
    A.data[1] -= 0.5
    A.unsqueeze(0).expand(1, 2, 3)[0, 0, 0] += 1.0
    return A


def indexed(self: Model, x: Tensor) -> Tensor:
    A = torch.zeros(2, 3)
    A.index_put_((torch.tensor([0, 1]), torch.tensor([1, 2])), self.scale, accumulate=True)
    A[A == 0] = 0.5
    A[1].index_add_(0, torch.tensor([0, 2]), torch.ones(2))
    return A


def filled(self: Model, x: Tensor) -> Tensor:
    A = torch.zeros(2, 3)
    before = A + 1.0
    A[0].fill_(0.5)
    A.view(3, 2)[2].zero_()
    torch.add(A[0], 1.0, out=A[1])
    return A * before


def read_between(self: Model, x: Tensor) -> Tensor:
    A = torch.ones(2, 3)
    row = A[0]
    before = 1.0 * A
    row += 0.5
    between = A * 1.0
    row += 0.5
    return (before + 2.0 * between + 3.0 * A) / 6.0


def counted(self: Model, x: Tensor) -> Tensor:
    with torch.no_grad():
        self.counts[0] += 0.1
        self.counts.view(-1)[-1] += x.mean()
    return self.counts.clone()


def shrunk(self: Model, x: Tensor) -> Tensor:
    with torch.no_grad():
        self.scale.mul_(0.9)
    return self.scale.expand(2, 3)


def from_numpy(self: Model, x: Tensor) -> Tensor:
    A = torch.from_numpy(np.zeros((2, 3), dtype=np.float32))
    A[0] += 0.5
    return A


def from_bytes(self: Model, x: Tensor) -> Tensor:
    A = torch.frombuffer(bytearray(24), dtype=torch.float32).view(2, 3)
    A[0] += 0.5
    return A


def listed(self: Model, x: Tensor) -> Tensor:
    self.listed[0][0] += 0.1
    return self.listed[0].clone()


WEIGHTS = [
    design,
    literal,
    iterated,
    strided,
    scaled,
    with_a_parameter,
    with_the_data,
    pieces,
    narrowed,
    detached,
    indexed,
    filled,
    read_between,
    counted,
    shrunk,
    from_numpy,
]


def assigned(self: Guide, x: Tensor) -> Tensor:
    loc = torch.zeros(len(x), 2)
    loc[:, 0] = self.linear(x)[:, 0]
    return loc


def added(self: Guide, x: Tensor) -> Tensor:
    loc = torch.zeros(len(x), 2)
    for t in range(2):
        loc[:, t] += self.linear(x)[:, t] / (t + 2)
    return loc


def masked(self: Guide, x: Tensor) -> Tensor:
    found = self.linear(x)
    loc = torch.zeros_like(found)
    loc[found > 0] = 0.5
    loc.T[1] += found[:, 1]
    return loc


def cleared(self: Guide, x: Tensor) -> Tensor:
    x[:, 1] *= 0.5  # the rows that it was given, before the model sees them
    loc: Tensor = self.linear(x)
    return loc


FILLS = [assigned, added, masked, cleared]
FEW = [design, literal, pieces, read_between]
"""Writes to rows, to a literal, to parts of a tensor, and to what is read in between."""


def train(model: nn.Module, guide: nn.Module, capture: bool, **options: Any) -> list[Any]:
    """Everything that six steps of a training leave behind."""
    x = torch.randn(2 * N, D, generator=torch.Generator().manual_seed(0)) + 1.0
    options = {"max_epochs": 3, "batch_size": N, "learning_rate": 0.05, "seed": 0} | options
    fitted = fit(model, guide, x, progress=False, capture=capture, **options)
    state = [t.tolist() for m in (model, guide) for t in m.state_dict().values()]
    history = [{k: v for k, v in row.items() if k != "seconds"} for row in fitted.history]
    return [history, state, x.tolist()]


def both(weight: Any, fill: Any = None, **options: Any) -> tuple[list[Any], list[Any]]:
    """What a training leaves, recorded and in Pyro."""
    found = []
    for captures in (True, False):
        torch.manual_seed(0)
        model, guide = Model(weight), Guide(fill)
        found.append([*train(model, guide, captures, **options), model.listed[0].tolist()])
    return found[0], found[1]


@pytest.mark.parametrize("weight", WEIGHTS)
def test_a_model_that_writes_trains_as_in_pyro(
    weight: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "FIRST_COMPARISONS", ())  # none that could turn capture off
    mine, pyros = both(weight)
    assert mine == pyros
    assert "capture is off" not in caplog.text


@pytest.mark.parametrize(
    "weight", [pytest.param(w, marks=() if w in FEW else pytest.mark.slow) for w in WEIGHTS]
)
def test_comparisons_find_nothing_and_change_nothing(
    weight: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "FIRST_COMPARISONS", (1, 2, 4))
    mine, pyros = both(weight)
    assert mine == pyros
    assert "capture is off" not in caplog.text


@pytest.mark.parametrize("fill", FILLS)
def test_a_guide_that_writes_trains_as_in_pyro(
    fill: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "FIRST_COMPARISONS", ())
    mine, pyros = both(design, fill)
    assert mine == pyros
    assert "capture is off" not in caplog.text


@pytest.mark.parametrize("weight", [from_bytes, listed])
def test_what_torch_has_not_made_may_not_be_written(
    weight: Any, caplog: pytest.LogCaptureFixture
) -> None:
    mine, pyros = both(weight)
    assert mine == pyros  # recording has not written to what is in a list, either
    assert "the programs change a tensor in place that is neither made by" in caplog.text


def test_what_a_run_leaves_to_the_next_shows_at_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the fault that this file is about put back, the second run is compared: no step is wrong."""
    for module in ("graphs", "recording", "substitutions"):
        monkeypatch.setattr(f"ppl_vae.capture.{module}.written_nodes", lambda graph: set())
    mine, pyros = both(design)
    assert mine == pyros
    assert "Usual causes: Python or NumPy state, tensors that are replaced" in caplog.text


@pytest.mark.parametrize(
    ("weight", "fill"),
    [
        # Each weight and each fill once.
        pytest.param(weight, fill, marks=() if i == j else pytest.mark.slow)
        for i, weight in enumerate(FEW)
        for j, fill in enumerate([None, assigned, added, masked])
    ],
)
def test_chunks_of_programs_that_write_are_recorded(
    weight: Any, fill: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weighing, "RECORD_FROM", 2)
    monkeypatch.setattr("ppl_vae.checks.session.Session.chunk_sizes", lambda self, k: (N, 3))
    torch.manual_seed(0)
    pair, x = (Model(weight), Guide(fill)), torch.randn(5 * N, D)
    with caplog.at_level(logging.INFO):
        mine, pyros = (
            evaluate(*pair, x, num_samples=6, seed=0, progress=False, capture=captures)
            for captures in (True, False)
        )
    assert torch.equal(mine.log_likelihood.values, pyros.log_likelihood.values)
    assert "capture is off" not in caplog.text


# -- annealing -------------------------------------------------------------------------------------------


def through_a_view(z: Tensor) -> Tensor:
    loc = torch.zeros(*z.shape, 3)
    for t in range(3):
        loc[..., t] += z
    return loc


def one_after_the_other(z: Tensor) -> Tensor:
    loc = torch.zeros(*z.shape, 3)
    for t in range(3):
        loc[..., t] += z if t == 0 else loc[..., t - 1].clone()
    return loc


def before_z(z: Tensor) -> Tensor:
    weight = torch.ones(3)
    weight[:2] -= 0.5
    early = z.unsqueeze(-1) * weight.clone()  # autograd keeps it
    weight[:2] += 1.0
    return 0.5 * (early + z.unsqueeze(-1) * weight)


@pytest.mark.parametrize("locate", [through_a_view, one_after_the_other, before_z])
def test_annealing_meets_the_closed_form(locate: Any, caplog: pytest.LogCaptureFixture) -> None:
    """x_t | z ~ N(z, 1) for three t, z ~ N(0, 1): x ~ N(0, I + 1)."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(locate(z), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.sum(1) / 4, 0.6))

    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    with caplog.at_level(logging.INFO):
        found = annealed_importance_sampling(
            model, guide, x, num_chains=32, num_steps=30, seed=0, progress=False
        )
    exact = dist.MultivariateNormal(torch.zeros(3), torch.eye(3) + 1.0).log_prob(x)
    torch.testing.assert_close(found.log_likelihood.values.float(), exact, atol=0.1, rtol=0)
    assert "runs instead" not in caplog.text


@pytest.mark.parametrize("locate", [through_a_view, one_after_the_other, before_z])
def test_every_call_of_a_recorded_function_is_right(locate: Any) -> None:
    run = recorded(lambda u: (locate(u),), torch.zeros(2))
    for u in torch.randn(3, 2):
        torch.testing.assert_close(run(u), (u.unsqueeze(-1).expand(2, 3),))


def test_recorded_functions_keep_what_they_are_given() -> None:
    state, u = torch.zeros(3), torch.ones(3)

    def counting(u: Tensor) -> tuple[Tensor]:
        state[0] += 1.0
        return (u + state,)

    def writing(u: Tensor) -> tuple[Tensor]:
        u.view(-1)[0] += 1.0
        return (2.0 * u,)

    for function in (counting, writing):
        with pytest.raises(ValueError, match="change tensors in place"):
            recorded(function, u)
    assert (state.tolist(), u.tolist()) == ([0.0] * 3, [1.0] * 3)


# -- graphs ----------------------------------------------------------------------------------------------


def sharing(function: Callable[..., Any], *args: Tensor) -> set[frozenset[str]]:
    groups = sharing_memory(make_fx(function)(*args)).values()
    return {frozenset(n.name for n in group) for group in groups if len(group) > 1}


def test_views_share_memory_and_separate_results_do_not() -> None:
    def function(a: Tensor, b: Tensor) -> Any:
        first, second = torch.sort(a)
        left, right = (b + 1).split(1)
        total: Tensor = first + second + left.t().detach() * right.exp()
        return total

    assert sharing(function, torch.ones(2, 1), torch.ones(2, 1)) == {
        frozenset({"a_1", "b_1"}),  # they may: whoever calls it decides
        frozenset({"add", "split", "getitem_2", "getitem_3", "t", "alias"}),
    }


def test_tensors_of_one_storage_share_memory() -> None:
    table = torch.zeros(2, 3)
    row = table[1]
    graph = make_fx(lambda x: x + table.sum() + row.add_(1.0))(torch.ones(3))
    names = {n.name for n in written_nodes(graph)}
    assert {"_tensor_constant0", "_tensor_constant1", "add_"} <= names
    assert "sum_1" not in names


@pytest.mark.parametrize(("training", "writes"), [(True, 2), (False, 0)])
def test_batch_norm_writes_while_it_is_trained(training: bool, writes: int) -> None:
    norm = nn.BatchNorm1d(2, track_running_stats=True).train(training)
    norm.num_batches_tracked = None
    graph = make_fx(lambda x: norm(x))(torch.randn(3, 2))
    assert len(written_nodes(graph)) == writes


def test_logarithms_are_not_joined_across_a_write() -> None:
    """sum_i log p(x_i | l_i) of the logits as they were, not of those that they become."""

    def log_prob(logits: Tensor, x: Tensor) -> Tensor:
        logits = logits + 0.0
        terms = nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none")
        logits.view(-1).add_(1.0)
        return (-terms).sum(-1)

    logits, x = torch.randn(3, 64), torch.rand(3, 64).round()
    graph = make_fx(log_prob)(logits, x)
    simplify(graph)
    for node in graph.graph.nodes:
        value = node.meta.get("val")
        node.meta = {"shape": value.shape} if isinstance(value, Tensor) else {}
    join_logarithms(graph)
    torch.testing.assert_close(graph(logits, x), log_prob(logits, x))


@contextmanager
def captured(model: nn.Module, x: Tensor) -> Iterator[capture.CapturedLoss]:
    pair = Pair(model, Guide())
    with pair.scope(), pyro.validation_enabled(False), pair.mode(training=True):
        objective = Resolved(TraceELBO(), pair)
        yield capture.CapturedLoss(pair, Layouts(pair), objective, pair.parameters(x))


def test_recording_leaves_a_tensor_in_a_list_alone() -> None:
    """Even where recording fails: the step is done again by Pyro, which writes once."""
    model, x = Model(listed), torch.randn(N, D)
    with captured(model, x) as step:
        step.objective.of(step.layouts.of(x), x)  # which run the programs, too
        before = model.listed[0].clone()
        with pytest.raises(CaptureError, match="in place"):
            step(x, 1.0)
    assert torch.equal(model.listed[0], before)


def test_a_run_that_differs_leaves_tensors_as_they_were() -> None:
    hidden = [1.0]  # in a list: nothing that can be looked at

    def weight(self: Model, x: Tensor) -> Tensor:
        return hidden[0] * shrunk(self, x) + counted(self, x)

    model, x = Model(weight), torch.randn(N, D)
    with captured(model, x) as step:
        step(x, 1.0)
        before = [t.clone() for t in model.state_dict().values()]
        hidden[0] = 2.0
        with pytest.raises(CaptureError, match="differs from Pyro's"):
            step(x, 1.0)
    assert all(map(torch.equal, model.state_dict().values(), before))
