"""A recorded step gives Pyro's numbers, or says why it cannot."""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import LIKELIHOODS
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake
from torch.fx.experimental import proxy_tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_vae import fit
from ppl_vae.capture import (
    CapturedLoss,
    CaptureError,
    StaleRecordingError,
    graphs as graphs_module,
    recording,
    step as capture,
)
from ppl_vae.capture.recording import Recording
from ppl_vae.checks import PairWarning
from ppl_vae.codes import RandomStart, VectorQuantizer
from ppl_vae.guides import (
    Enumerated,
    Exact,
    FullCovariance,
    MeanField,
    QuantizingEncoder,
    SemiAmortized,
    TopDown,
)
from ppl_vae.models import VAE, VQVAE, GaussianMixture, HierarchicalVAE, ProbabilisticPCA
from ppl_vae.networks import MLP, AutoregressiveDecoder, Convolutional, Slots
from ppl_vae.objectives import (
    ELBO,
    EnumELBO,
    ImportanceWeightedELBO,
    LinearWarmup,
    Loss,
    MeanFieldELBO,
    Objective,
    QuantizedELBO,
    Resolved,
    TraceELBO,
)
from ppl_vae.pairs import Layout, Layouts, Pair
from ppl_vae.training import checkpoints, step as training_step
from ppl_vae.training.loop import Training

SHAPE = (1, 6, 6)
OBJECTIVES = [
    TraceELBO(),
    TraceELBO(beta=3.0, num_particles=2),
    MeanFieldELBO(beta=LinearWarmup(10)),
    MeanFieldELBO(free_bits=0.1, num_particles=3),
    ImportanceWeightedELBO(num_particles=4),
    TraceELBO(beta=LinearWarmup(10), num_particles=3, stick_the_landing=True),
    ImportanceWeightedELBO(beta=0.5, num_particles=4, doubly_reparameterized=True),
    EnumELBO(),
]
NETWORKS = [
    MLP(hidden=(8,)),
    Convolutional(channels=(3, 4), hidden=8),
    AutoregressiveDecoder(MLP(hidden=(8,)), channels=3, layers=2, window=2, pixel_dropout=0.3),
]
TURNS = ((0, MeanField), (1, FullCovariance))


@pytest.fixture(autouse=True)
def record_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "RECORD_AFTER", 0)


def rows(n: int = 7) -> Tensor:
    return torch.randint(0, 2, (n, *SHAPE)).float()


def small_pair() -> tuple[VAE, MeanField]:
    """Of one layer each: Inductor compiles as few kernels as may be."""
    torch.manual_seed(2)
    return VAE(SHAPE, 2, MLP(())), MeanField(SHAPE, 2, MLP(()))


@contextmanager
def captured(model: Any, guide: Any, x: Any, objective: Objective) -> Iterator[CapturedLoss]:
    pair = Pair(model, guide)
    with pair.scope(), pyro.validation_enabled(False), pair.mode(training=True):
        yield CapturedLoss(pair, Layouts(pair), Resolved(objective, pair), pair.parameters(x))


def same_as_pyro(step: CapturedLoss, x: Tensor, beta: float) -> None:
    """Metrics and gradients of one step, bit by bit, under the same random numbers."""
    step(x, beta)  # makes the recording and looks at it
    torch.manual_seed(5)
    metrics = step(x, beta)
    gradients = [leaf.grad for leaf in step.leaves]
    torch.manual_seed(5)
    expected, *expected_gradients = step._plain(x, beta, step.layouts.of(x))
    torch.testing.assert_close(metrics, expected, rtol=1e-6, atol=1e-5)
    for name, mine, theirs in zip(step.names, gradients, expected_gradients, strict=True):
        assert (mine is None) == (theirs is None), name
        if mine is not None:
            assert torch.equal(mine, theirs), name


class Own(Objective):
    """An objective of one's own that leaves the choice of the estimator to ELBO."""

    def __call__(self, pair: Pair, layout: Layout, batch: Any, beta: float = 1.0) -> Loss:
        return ELBO()(pair, layout, batch, 0.5 * beta)


def test_an_objective_that_calls_another_one_is_recorded() -> None:
    x = rows()
    with captured(*small_pair(), x, Own()) as step:
        step._plain(x, 0.7, step.layouts.of(x))  # the first steps are Pyro's
        same_as_pyro(step, x, 0.7)
        assert step.recordings == 1


def test_an_objective_that_is_called_counts_no_batch_twice() -> None:
    """The statistics of batch norm after one training step are those of its batch."""
    model, guide = small_pair()
    norm = nn.BatchNorm1d(4)

    def normed(x: Tensor) -> None:
        pyro.module("norm", norm)
        guide(norm(x.reshape(-1, 4)).reshape(x.shape))

    x = rows()
    fit(model, normed, x, objective=Own(), max_epochs=1, seed=0, progress=False)
    assert norm.num_batches_tracked is not None
    assert norm.num_batches_tracked.item() == 1


def name_of(value: Any) -> str:
    if isinstance(value, Objective):
        words = value.needs_reparameterized_latents.split()
        return "-".join([type(value).__name__, f"{value.num_particles}", *words])
    return str(getattr(value, "__name__", type(value).__name__))


# Every objective with one of the pairs, in turn; the tests of strides and of fits train others.
@pytest.mark.slow(
    only=(
        "MLP-MeanField-ImportanceWeightedELBO-4",
        "Convolutional-FullCovariance-TraceELBO-2",
        "MLP-MeanField-ImportanceWeightedELBO-4-doubly_reparameterized",
        "Convolutional-FullCovariance-MeanFieldELBO-3-free-bits",
        "Convolutional-FullCovariance-TraceELBO-3-stick_the_landing",
    )
)
@pytest.mark.parametrize(
    ("network", "guide", "objective"),
    [
        pytest.param(
            *(NETWORKS[network], guide, objective),
            marks=() if (network, guide) == TURNS[i % 2] else pytest.mark.slow,
        )
        for network in (0, 1)
        for guide in (MeanField, FullCovariance)
        for i, objective in enumerate(OBJECTIVES)
    ],
    ids=name_of,
)
def test_gradients_are_bit_identical(network: Any, guide: Any, objective: Objective) -> None:
    x = rows()
    model = VAE(SHAPE, 2, network)
    with captured(model, guide(SHAPE, 2, network), x, objective) as step:
        same_as_pyro(step, x, objective.beta_at(3.0))
        assert step.recordings == 1


# Every likelihood with one network, and those of one, of two and of many numbers per element with all of them.
WITH_ALL_NETWORKS = ("DiscretizedLogistic",)


@pytest.mark.parametrize(
    ("network", "likelihood"),
    [
        pytest.param(
            network,
            name,
            marks=() if network is NETWORKS[0] or name in WITH_ALL_NETWORKS else pytest.mark.slow,
        )
        for network in NETWORKS
        for name in LIKELIHOODS
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_every_likelihood_is_recorded(network: Any, likelihood: str) -> None:
    row = LIKELIHOODS[likelihood]
    x = row.data(torch.rand(7, *SHAPE))
    model = VAE(SHAPE, 2, network, row.make())
    with captured(model, MeanField(SHAPE, 2, network), x, MeanFieldELBO()) as step:
        same_as_pyro(step, x, 1.0)


def test_an_exact_guide_is_recorded() -> None:
    x = torch.randn(9, 5)
    model = ProbabilisticPCA((5,), 2)
    with captured(model, Exact(model), x, TraceELBO()) as step:
        same_as_pyro(step, x, 1.0)


def semi_amortized(differentiable: bool) -> tuple[Any, Any, Objective]:
    model = VAE(SHAPE, 2, NETWORKS[0])
    guide = SemiAmortized(model, SHAPE, 2, NETWORKS[0], 2, differentiable=differentiable)
    return model, guide, MeanFieldELBO(beta=LinearWarmup(10), num_particles=2)


def top_down() -> tuple[Any, Any, Objective]:
    model = HierarchicalVAE(SHAPE, (3, 2), NETWORKS[1], NETWORKS[0])
    return model, TopDown(model, SHAPE, (3, 2), NETWORKS[1], NETWORKS[0]), MeanFieldELBO()


def enumerated() -> tuple[Any, Any, Objective]:
    model = GaussianMixture(SHAPE, 3, "diagonal")
    return model, Enumerated(model), EnumELBO()


LOOK_AT_THE_MODEL: dict[str, Callable[[], tuple[Any, Any, Objective]]] = {
    "SemiAmortized": lambda: semi_amortized(True),
    "SemiAmortized-constant": lambda: semi_amortized(False),
    "TopDown": top_down,
    "Enumerated": enumerated,
}


@pytest.mark.slow(but=("SemiAmortized",))
@pytest.mark.parametrize("make", LOOK_AT_THE_MODEL.values(), ids=LOOK_AT_THE_MODEL.keys())
def test_guides_that_look_at_the_model_are_recorded(
    make: Callable[[], tuple[Any, Any, Objective]],
) -> None:
    x = rows()
    torch.manual_seed(0)
    model, guide, objective = make()
    with captured(model, guide, x, objective) as step:
        same_as_pyro(step, x, objective.beta_at(3.0))
        with torch.no_grad():  # the recording reads the model's weights, and keeps none of them
            for parameter in step.leaves:
                parameter.mul_(1.1)
        same_as_pyro(step, x, objective.beta_at(3.0))
        assert step.recordings == 1


def test_beta_is_an_input() -> None:
    x = rows()
    objective = MeanFieldELBO(beta=LinearWarmup(10))
    with captured(VAE(SHAPE, 2), MeanField(SHAPE, 2), x, objective) as step:
        losses = []
        for beta in (0.0, 0.25, 1.0):
            torch.manual_seed(0)
            losses.append(step(x, beta)[0])
        assert step.recordings == 1
    # The loss is linear in beta: D + beta R, with the same noise.
    torch.testing.assert_close(losses[1] - losses[0], 0.25 * (losses[2] - losses[0]))


def test_recordings_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "MOST_RECORDINGS", 3)
    with captured(*small_pair(), rows(), TraceELBO()) as step:
        for n in range(1, capture.MOST_RECORDINGS + 1):
            step(rows(n), 1.0)
        step(rows(1), 1.0)
        assert step.recordings == capture.MOST_RECORDINGS
        with pytest.raises(CaptureError, match="shapes"):
            step(rows(capture.MOST_RECORDINGS + 1), 1.0)


def trained(model: Any, guide: nn.Module, x: Tensor, **options: Any) -> list[Tensor]:
    fit(model, guide, x, max_epochs=4, batch_size=5, seed=1, progress=False, **options)
    return [
        t.clone()
        for m in (model, guide)
        if isinstance(m, nn.Module)
        for t in m.state_dict().values()
    ]


class Dropping(nn.Module):
    """A mean-field guide whose encoder drops units."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.Dropout(0.5), nn.Linear(16, 4))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc, log_scale = self.net(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


@pytest.mark.parametrize(
    ("network", "guide"),
    [
        pytest.param(
            MLP(hidden=(8,)), lambda: MeanField(SHAPE, 2, MLP(hidden=(8,))), marks=pytest.mark.slow
        ),
        pytest.param(
            NETWORKS[1], lambda: MeanField(SHAPE, 2, NETWORKS[1]), marks=pytest.mark.slow
        ),  # batch norm: buffers move
        (MLP(hidden=(8,)), Dropping),
    ],
)
def test_the_same_trajectory_with_and_without(network: Any, guide: Any) -> None:
    x = rows(12)  # the last of three batches is smaller
    results = []
    for use in (True, False):
        torch.manual_seed(0)
        results.append(trained(VAE(SHAPE, 2, network), guide(), x, capture=use))
    for mine, theirs in zip(*results, strict=True):
        assert torch.equal(mine, theirs)


def test_only_shapes_that_come_often_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "RECORD_AFTER", 3)
    with captured(VAE(SHAPE, 2), MeanField(SHAPE, 2), rows(), TraceELBO()) as step:
        assert [step.worth_recording(rows(7)) for _ in range(5)] == [
            False,
            False,
            False,
            True,
            True,
        ]
        assert not step.worth_recording(rows(6))


def test_a_fit_records_each_common_shape_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "RECORD_AFTER", 2)
    made: list[CapturedLoss] = []
    original = CapturedLoss.__init__

    def remembered(self: CapturedLoss, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        made.append(self)

    monkeypatch.setattr(CapturedLoss, "__init__", remembered)
    trained(VAE(SHAPE, 2), MeanField(SHAPE, 2), rows(12))  # 4 epochs of batches of 5, 5 and 2 rows
    assert [step.recordings for step in made] == [2]


def test_dropout_stays_random() -> None:
    x = rows()
    with captured(VAE(SHAPE, 2), Dropping(), x, TraceELBO()) as step:
        step(x, 1.0)
        assert not torch.equal(step(x, 1.0), step(x, 1.0))


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)


class Guide(nn.Module):
    """A linear guide with a hook through which it misbehaves."""

    def __init__(self, misbehave: Callable[[Guide, Tensor], Any] = lambda self, loc: loc) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 2)
        self.counter = 0
        self.misbehave = misbehave

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc = self.misbehave(self, self.linear(x.unsqueeze(-1)))
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


def branch(self: Guide, loc: Tensor) -> Tensor:
    return loc if loc.sum() > 0 else -loc


def item(self: Guide, loc: Tensor) -> Tensor:
    return loc * loc.abs().max().item()


def numpy_noise(self: Guide, loc: Tensor) -> Tensor:
    return loc + float(np.random.randn())


def counting(self: Guide, loc: Tensor) -> Tensor:
    self.counter += 1
    return loc / self.counter


def sampled_shape(self: Guide, loc: Tensor) -> Tensor:
    kept = loc[torch.rand(len(loc)) > 0.5]
    return loc + kept.sum()


def open_one_hot(self: Guide, loc: Tensor) -> Tensor:
    return loc + nn.functional.one_hot(torch.arange(len(loc)) % 2).to(loc.dtype)


@pytest.mark.parametrize(
    ("misbehave", "reason"),
    [
        (branch, "Python number"),
        (item, "Python number"),
        (numpy_noise, "NumPy"),
        (counting, "counter"),
        (sampled_shape, "shapes"),
        (open_one_hot, "give it num_classes, as in one_hot(y, num_classes=10)"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_cannot_be_recorded_is_named_and_done_by_pyro(
    misbehave: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    x = torch.randn(11)
    results = []
    for use in (True, False):
        torch.manual_seed(0)
        guide = Guide(misbehave)
        with caplog.at_level(logging.WARNING):
            fit(model, guide, x, max_epochs=3, batch_size=4, seed=0, capture=use, progress=False)
        results.append(guide.linear.weight.detach().clone())
    assert torch.equal(*results)
    (message,) = [r.getMessage() for r in caplog.records if "capture is off" in r.getMessage()]
    assert reason in message
    assert "\n" not in message


def by_place(y: Tensor) -> Tensor:
    return nn.functional.one_hot(y, 3)


def by_name(y: Tensor) -> Tensor:
    options: dict[str, Any] = {"input": y, "num_classes": 3}
    return nn.functional.one_hot(**options)


def of_tables(y: Tensor) -> Tensor:
    return nn.functional.one_hot(torch.stack([y, 2 - y], -1), 3).sum(1)


class Labelled(nn.Module):
    """A guide, or with data a model, of rows and their labels as one-hot vectors."""

    def __init__(self, one_hot: Callable[[Tensor], Tensor], observes: bool) -> None:
        super().__init__()
        self.one_hot, self.observes = one_hot, observes
        self.linear = nn.Linear(4, 1)

    def forward(self, x: Tensor, y: Tensor) -> None:
        labels = self.one_hot(y).to(x.dtype)
        with pyro.plate("data", len(x)):
            if self.observes:
                z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
                loc = self.linear(torch.cat([z.unsqueeze(-1), labels], -1)).squeeze(-1)
                pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
            else:
                loc = self.linear(torch.cat([x.unsqueeze(-1), labels], -1)).squeeze(-1)
                pyro.sample("z", dist.Normal(loc, 1.0))


@pytest.mark.parametrize(
    "one_hot", [pytest.param(by_place, marks=pytest.mark.slow), by_name, of_tables]
)
def test_one_hot_with_a_number_of_classes_is_recorded(
    one_hot: Callable[[Tensor], Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    x, y = torch.randn(15), torch.arange(15) % 3
    results = []
    for use in (True, False):
        torch.manual_seed(0)
        pair = Labelled(one_hot, True), Labelled(one_hot, False)
        with caplog.at_level(logging.WARNING):
            fit(*pair, (x, y), max_epochs=3, batch_size=5, seed=0, capture=use, progress=False)
        results.append(torch.cat([p.detach().flatten() for m in pair for p in m.parameters()]))
    assert torch.equal(*results)
    assert not caplog.records


@pytest.mark.parametrize("wrong", [3, -1])
def test_a_class_out_of_range_is_no_one_hot_vector_in_a_recording(wrong: int) -> None:
    """`scatter` refuses it; a comparison with all classes would give zeros in silence."""
    batch = torch.randn(5), torch.arange(5) % 3
    model, guide = Labelled(by_place, True), Labelled(by_place, False)
    with captured(model, guide, batch, TraceELBO()) as step:
        for _ in range(3):  # of which two are compared with Pyro's, which would refuse it as well
            step(batch, 1.0)
        batch[1][2] = wrong
        with pytest.raises(CaptureError, match="out of bounds"):
            step(batch, 1.0)


class Carrying(nn.Module):
    """A model of one number per row whose location depends on its own tensors, by a hook."""

    def __init__(self, location: Callable[[Carrying, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 2))
        self.bias = nn.Parameter(torch.zeros(3))
        self.register_buffer("average", torch.zeros(()))
        self.average: Tensor
        self.plain = torch.zeros(())
        self.location = location

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.location(self, z), 1.0), obs=x)


def expanded(self: Carrying, z: Tensor) -> Tensor:
    return z.sum(-1) + self.weight.sum()  # its gradient is one number that stands for all


def constant(self: Carrying, z: Tensor) -> Tensor:
    pyro.factor("gain", (0.3 * self.bias).sum().expand(len(z)))  # its gradient is a literal
    return z.sum(-1)


def twice(self: Carrying, z: Tensor) -> Tensor:
    both = self.bias + self.weight[:, 0]  # one gradient for the two
    return z.sum(-1) * both.exp().sum()


def in_place(self: Carrying, z: Tensor) -> Tensor:
    for tensor in (self.average, self.plain):
        tensor.mul_(0.9).add_(0.1 * z.detach().mean())
    return z.sum(-1) + self.average + self.plain


def replaced_buffer(self: Carrying, z: Tensor) -> Tensor:
    self.average = 0.9 * self.average + 0.1 * z.detach().mean()
    return z.sum(-1)


def replaced_attribute(self: Carrying, z: Tensor) -> Tensor:
    self.plain = 0.9 * self.plain + 0.1 * z.detach().mean()
    return z.sum(-1) + self.plain


def remade(self: Carrying, z: Tensor) -> Tensor:
    self.plain = 2.0 * self.bias  # as weight normalization does: nothing of it goes on
    return z.sum(-1) + self.plain.sum()


# Clipping changes gradients in place: it matters where they are one number, a literal or shared. The optimizer
# alone does not, but reads a gradient that is one number for all.
LOCATIONS: dict[Any, tuple[str | None, tuple[float | None, ...]]] = {
    expanded: (None, (0.5, None)),
    constant: (None, (0.5,)),
    twice: (None, (0.5,)),
    in_place: (None, (None,)),
    remade: (None, (None,)),
    replaced_buffer: ("'average'", (None,)),
    replaced_attribute: ("'plain'", (None,)),
}
"""Why a program is not recorded, and the clipping with which it is not slow."""


@pytest.mark.slow(only=("expanded-None-0.5", "constant-None-0.5", "twice-None-0.5"))
@pytest.mark.parametrize(
    ("location", "reason", "clip"),
    [
        pytest.param(location, reason, clip, marks=() if clip in usual else pytest.mark.slow)
        for location, (reason, usual) in LOCATIONS.items()
        for clip in (None, 0.5)
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
@pytest.mark.filterwarnings("ignore:parameter 'model")  # not all of them use all parameters
def test_whatever_the_tensors_of_a_program_do(
    location: Any, reason: str | None, clip: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    x = torch.randn(12)
    results = []
    for use in (True, False):
        torch.manual_seed(0)
        pair = Carrying(location), Guide()
        with caplog.at_level(logging.WARNING):
            found = trained(*pair, x, capture=use, clip_grad_norm=clip)
        results.append([*found, pair[0].plain])
    for mine, theirs in zip(*results, strict=True):
        assert torch.equal(mine, theirs)
    messages = [r.getMessage() for r in caplog.records if "capture is off" in r.getMessage()]
    assert len(messages) == (reason is not None)
    assert reason is None or reason in messages[0]


def test_metrics_are_as_exact_as_the_data() -> None:
    x = torch.randn(11, dtype=torch.float64)
    with captured(model, Guide().double(), x, TraceELBO()) as step:
        assert step(x, 1.0).dtype == torch.float64


def test_shapes_without_room_are_done_by_pyro(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "MOST_RECORDINGS", 2)
    with captured(VAE(SHAPE, 2), MeanField(SHAPE, 2), rows(), TraceELBO()) as step:
        for n in (1, 2):
            assert step.worth_recording(rows(n))
            step(rows(n), 1.0)
        assert not step.worth_recording(rows(3))
        assert not step.has_room(rows(3))
        assert step.worth_recording(rows(1))
        assert step.has_room(rows(1))


@torch.library.custom_op("tests_of_capture::doubled", mutates_args=())
def doubled(x: Tensor) -> Tensor:
    return 2 * x


doubled.register_autograd(lambda _, gradient: 2 * gradient)


def by_own_operation(self: Guide, loc: Tensor) -> Tensor:
    return doubled(loc)  # type: ignore[no-any-return]


def by_lists_and_literals(self: Guide, loc: Tensor) -> Tensor:
    first, second = loc.split(1, -1)
    return torch.cat([second * 1.0, first.max(-1, keepdim=True).values], -1) + torch.ones_like(
        loc.sum(), dtype=torch.float64
    ).to(loc.dtype)


def by_counts(self: Guide, loc: Tensor) -> Tensor:
    return loc + ((loc > -9) * 1 + (loc < 9) * 1)  # masks, each times 1, are added: 2, not "or"


@pytest.mark.parametrize("location", [by_own_operation, by_counts, by_lists_and_literals])
def test_a_recording_is_the_one_with_fake_tensors(
    location: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch computes with the tensors themselves and would only describe each by a FakeTensor."""
    x = torch.randn(7)
    graphs = []
    for without in (graphs_module.without_fake_tensors, contextlib.nullcontext):
        monkeypatch.setattr(recording, "without_fake_tensors", without)
        torch.manual_seed(0)
        with captured(model, Guide(location), x, TraceELBO()) as step:
            same_as_pyro(step, x, 1.0)
            (kept,) = step._cache.values()
            nodes = kept.recording.graph.graph.nodes
            graphs.append([(str(n.target), n.meta.get("shape")) for n in nodes])
    assert graphs[0] == graphs[1]
    assert all(shape is not None for target, shape in graphs[0] if "add" in target)


def test_what_is_traced_with_fake_tensors_keeps_them() -> None:
    """As another thread may do, which compiles something meanwhile."""
    with graphs_module.without_fake_tensors():
        graph = make_fx(torch.sin, tracing_mode="fake")(torch.randn(3))
    values = [n.meta["val"] for n in graph.graph.nodes if n.op != "output"]
    assert len(values) == 2
    assert all(is_fake(value) for value in values)


def test_threads_that_record_at_once_leave_torch_as_it_was() -> None:
    before = proxy_tensor.extract_val
    inside, left = threading.Event(), threading.Event()

    def other() -> None:
        with graphs_module.without_fake_tensors():
            inside.set()
            left.wait(10)

    thread = threading.Thread(target=other)
    with graphs_module.without_fake_tensors():
        thread.start()
        assert not inside.wait(0.2)  # it comes after this one
    left.set()
    thread.join(10)
    assert inside.is_set()
    assert proxy_tensor.extract_val is before


def test_a_version_of_torch_that_describes_in_another_way_keeps_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(graphs_module, "_DESCRIBES", "of_another_version")
    with graphs_module.without_fake_tensors():
        graph = make_fx(torch.sin)(torch.randn(3))
    assert all(is_fake(n.meta["val"]) for n in graph.graph.nodes if n.op != "output")


@pytest.mark.parametrize("kept", ["facts", "fake tensors", "nothing"])
@pytest.mark.parametrize(("dtype", "depends"), [(torch.bool, True), (torch.int64, False)])
def test_a_mask_is_told_from_indices_whatever_torch_keeps(
    kept: str, dtype: torch.dtype, depends: bool
) -> None:
    """The shape of `x[mask]` depends on values. What is not known is taken for a mask."""
    index = torch.tensor([0, 1, 1]).to(dtype)
    facts = kept == "facts"
    with graphs_module.without_fake_tensors() if facts else contextlib.nullcontext():
        graph = make_fx(lambda x, i: x[i])(torch.randn(3), index)
    if kept == "nothing":
        for node in graph.graph.nodes:
            node.meta.clear()
    assert graphs_module.has_dynamic_shapes(graph) == (depends or kept == "nothing")


def test_what_fails_as_it_runs_is_a_capture_error() -> None:
    def broken(*args: Any) -> Any:
        raise RuntimeError("no memory")

    x = rows()
    with captured(VAE(SHAPE, 2), MeanField(SHAPE, 2), x, TraceELBO()) as step:
        step(x, 1.0)
        for kept in step._cache.values():
            kept.recording.run = broken
        with pytest.raises(CaptureError, match="no memory"):
            step(x, 1.0)


def test_python_state_that_changes_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def scaled(self: Guide, loc: Tensor) -> Tensor:
        return loc * self.counter

    guide = Guide(scaled)
    x = torch.randn(5)
    with captured(model, guide, x, TraceELBO()) as step:
        step(x, 1.0)
        guide.counter = 3
        step.recheck_state()
        same_as_pyro(step, x, 1.0)
        assert step.recordings == 2
        monkeypatch.setattr(capture, "LOOK_EVERY", 4)
        guide.counter = 5
        for _ in range(5):
            step(x, 1.0)
        assert step.recordings == 3


def test_a_stale_recording_is_found_by_comparing(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = [torch.tensor(1.0)]  # in a list: nothing that can be looked at

    def scaled(self: Guide, loc: Tensor) -> Tensor:
        return loc * hidden[0]

    monkeypatch.setattr(capture, "COMPARE_EVERY", (5, 5))
    x = torch.randn(5)
    with captured(model, Guide(scaled), x, TraceELBO()) as step:
        step(x, 1.0)
        step(x, 1.0)
        hidden[0] = torch.tensor(2.0)
        for _ in range(2):
            step(x, 1.0)
        generators = torch.get_rng_state()
        with pytest.raises(StaleRecordingError, match=r"differs from Pyro's.*last agreed: 2$"):
            step(x, 1.0)
        assert torch.equal(torch.get_rng_state(), generators)  # the step can be done again


def test_a_step_whose_recording_is_stale_is_done_by_pyro_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The gradients of the recording that was found to differ must not be added to Pyro's."""
    monkeypatch.setattr(capture, "FIRST_COMPARISONS", (1, 5))
    x = torch.randn(15)
    found = []
    for captures in (True, False):
        hidden, calls = [torch.tensor(1.0)], [0]

        def scaled(self: Guide, loc: Tensor, hidden: list[Tensor] = hidden) -> Tensor:
            return loc * hidden[0]

        def change(x: Tensor, hidden: list[Tensor] = hidden, calls: list[int] = calls) -> Tensor:
            calls[0] += 1
            if calls[0] == 8:  # the fifth step, after two checks, three steps, active units, a step
                hidden[0] = torch.tensor(2.0)
            return x

        torch.manual_seed(3)
        warned = pytest.warns(PairWarning, match="up to step 4, .* last agreed: 3. Train again")
        with warned if captures else contextlib.nullcontext():
            found.append(trained(model, Guide(scaled), x, transform=change, capture=captures))
    assert "differs from Pyro's" in caplog.text
    assert all(torch.equal(*both) for both in zip(*found, strict=True))


def test_a_step_is_compared_when_recorded_and_rarely_afterwards() -> None:
    x = rows()
    with captured(VAE(SHAPE, 2), MeanField(SHAPE, 2), x, TraceELBO()) as step:
        for _ in range(120):
            step(x, 1.0)
        assert (step.recordings, step.comparisons) == (1, len(capture.FIRST_COMPARISONS))


def test_a_step_makes_no_call_to_pyro(monkeypatch: pytest.MonkeyPatch) -> None:
    x = rows()
    with captured(VAE(SHAPE, 2), MeanField(SHAPE, 2), x, TraceELBO()) as step:
        step(x, 1.0)
        step(x, 1.0)  # two comparisons with Pyro
        calls = []
        monkeypatch.setattr(pyro, "sample", lambda *a, **k: calls.append(a))
        step(x, 1.0)
        assert not calls


def test_recording_leaves_generators_and_buffers_alone() -> None:
    x = rows()
    network = NETWORKS[1]
    with captured(VAE(SHAPE, 2, network), MeanField(SHAPE, 2, network), x, TraceELBO()) as step:
        buffers = [b.clone() for m in step._modules() for b in m.buffers(recurse=False)]
        generators = torch.get_rng_state()
        step._record(x, 1.0)
        assert torch.equal(torch.get_rng_state(), generators)
        now = [b for m in step._modules() for b in m.buffers(recurse=False)]
        assert all(torch.equal(*both) for both in zip(buffers, now, strict=True))


@pytest.mark.parametrize(
    "change", [pytest.param(3e-4, marks=pytest.mark.slow), 0.3], ids=["rounding", "wrong"]
)
def test_a_compiled_step_may_choose_other_codes_for_vectors_between_two(
    monkeypatch: pytest.MonkeyPatch, change: float
) -> None:
    """Rounding decides some of 700 choices otherwise, and the loss jumps; the recording itself is the same."""

    def compile_(self: Recording) -> None:
        plain = self.graph.forward

        def run(*args: Tensor) -> Any:
            at = len(self.example)
            tensors = [
                t * (1 + change * torch.randn_like(t))
                if t.is_floating_point() and t.dim() > 1
                else t
                for t in args[at:]
            ]
            return plain(*args[:at], *tensors)

        self.compiled, self.run = True, run

    monkeypatch.setattr(Recording, "compile", compile_)
    torch.manual_seed(0)
    network = Slots(7, MLP(hidden=(8,)))
    quantizer = VectorQuantizer(64, 2, start=RandomStart(), restarts=0)
    model = VQVAE(SHAPE, quantizer, network)
    guide = QuantizingEncoder(model, network)
    x = rows(100)
    with captured(model, guide, x, QuantizedELBO()) as step:
        step(x, 1.0)
        (kept,) = step._cache.values()
        assert kept.recording.chooses
        with (
            pytest.raises(CaptureError, match="differs")
            if change > 0.1
            else contextlib.nullcontext()
        ):
            for _ in range(3):
                kept.calls = 0  # it is compared each time
                step(x, 1.0, compiled=True)
    with captured(VAE(SHAPE, 2), MeanField(SHAPE, 2), rows(), TraceELBO()) as step:
        step(rows(), 1.0)
        assert not next(iter(step._cache.values())).recording.chooses


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
def test_a_compiled_step_agrees_to_float_precision() -> None:
    x = rows(5)  # as in the next test of Inductor, which then finds it compiled
    with captured(*small_pair(), x, MeanFieldELBO()) as step:
        step(x, 1.0, compiled=True)
        assert [kept.recording.compiled for kept in step._cache.values()] == [True]
        torch.manual_seed(5)
        metrics = step(x, 1.0, compiled=True)
        torch.manual_seed(5)
        expected, *gradients = step._plain(x, 1.0, step.layouts.of(x))
        torch.testing.assert_close(metrics, expected, rtol=1e-5, atol=1e-5)
        for leaf, gradient in zip(step.leaves, gradients, strict=True):
            torch.testing.assert_close(leaf.grad, gradient, rtol=1e-4, atol=1e-5)


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of the batches that are compiled for, in place of a compilation: it changes the last bits."""
    made: list[int] = []

    def compile(self: Recording) -> None:
        made.append(self.example[0].shape[0])
        self.compiled = True
        self.run = lambda *inputs: [
            t if i == 0 or t is None else t * (1 + 1e-6)
            for i, t in enumerate(self.graph.forward(*inputs))
        ]

    monkeypatch.setattr(Recording, "compile", compile)
    monkeypatch.setattr(training_step, "RECORD_AFTER", 3)
    return made


@pytest.mark.parametrize(
    ("steps", "options", "expected"),
    [
        ((4, 12), {}, [5]),  # 4 epochs of 3 steps: long enough
        pytest.param((4, 13), {}, [], marks=pytest.mark.slow),
        pytest.param((4, 12), {"compile": False}, [], marks=pytest.mark.slow),
        pytest.param((4, 12), {"capture": False}, [], marks=pytest.mark.slow),
        pytest.param((10, 1000), {"compile": True}, [5], marks=pytest.mark.slow),
    ],
)
def test_full_batches_of_long_trainings_are_compiled(
    steps: tuple[int, int],
    options: dict[str, Any],
    expected: list[int],
    compilations: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training_step, "COMPILED", steps)
    trained(VAE(SHAPE, 2), MeanField(SHAPE, 2), rows(12), **options)
    assert compilations == expected


@pytest.mark.slow
@pytest.mark.parametrize(  # epochs: before the step is compiled, and after
    "killed_after", [pytest.param(1, marks=pytest.mark.slow), 3]
)
def test_a_training_that_is_compiled_goes_on_as_it_would_have(
    killed_after: int, compilations: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    killed_and_resumed(killed_after, monkeypatch, tmp_path)
    assert set(compilations) == {5}


@pytest.mark.slow  # half a minute of g++; test_weighing.py compiles a smaller graph
@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
def test_what_inductor_compiles_goes_on_as_it_would_have(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    killed_and_resumed(3, monkeypatch, tmp_path)


def killed_and_resumed(killed_after: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A training that is compiled from its fifth step on, killed after an epoch, ends with the same bits."""
    monkeypatch.setattr(training_step, "COMPILED", (5, 12))
    monkeypatch.setattr(capture, "RECORD_AFTER", 2)
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", (0.0, 60.0))
    x = rows(12)

    whole = trained(*small_pair(), x)

    class Killed(BaseException):
        pass

    def die(self: Training) -> dict[str, float]:
        row = original(self)
        if self.progress.epoch == killed_after + 1:
            raise Killed
        return row

    original = Training._end_of_epoch
    monkeypatch.setattr(Training, "_end_of_epoch", die)
    with pytest.raises(Killed):
        trained(*small_pair(), x, run_dir=tmp_path)
    monkeypatch.setattr(Training, "_end_of_epoch", original)
    resumed = trained(*small_pair(), x, run_dir=tmp_path, resume=True)
    for mine, theirs in zip(resumed, whole, strict=True):
        assert torch.equal(mine, theirs)


def test_where_inductor_fails_the_recording_is_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*args: Any) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(recording, "compile_graph", fails)
    monkeypatch.setattr(training_step, "RECORD_AFTER", 3)
    with caplog.at_level(logging.WARNING):
        trained(VAE(SHAPE, 2), MeanField(SHAPE, 2), rows(12), compile=True)
    assert [r.getMessage() for r in caplog.records] == [
        "the captured step is run as it is: Inductor could not compile it: RuntimeError: no compiler"
    ]


def test_a_graph_that_would_take_minutes_to_compile_is_run_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recording, "MOST_OPERATIONS", 10)
    monkeypatch.setattr(training_step, "RECORD_AFTER", 3)
    with caplog.at_level(logging.WARNING):
        trained(VAE(SHAPE, 2), MeanField(SHAPE, 2), rows(12), compile=True)
    assert len(caplog.records) == 1
    assert "operations would take Inductor minutes" in caplog.text


def test_a_program_of_many_sites_has_to_come_up_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    def chain(x: Tensor) -> None:
        scale = pyro.param("scale", torch.ones(()), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            for t in range(6):
                pyro.sample(f"x_{t}", dist.Normal(0.0, scale), obs=x[:, t])

    monkeypatch.setattr(capture, "RECORD_AFTER", 2)
    x = torch.randn(5, 6)
    with captured(chain, lambda x: None, x, TraceELBO()) as step:
        assert [step.worth_recording(x) for _ in range(8)] == [False] * 6 + [True] * 2
