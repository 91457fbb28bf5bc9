"""Strides: many steps in a row give the numbers of single steps, bit by bit, whatever happens in them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import StepLR
from trainings import as_if_compiled

from ppl_vae import fit
from ppl_vae.capture import step as capture
from ppl_vae.capture.recording import Recording
from ppl_vae.data import Binarization
from ppl_vae.objectives import ELBO, ImportanceWeightedELBO, LinearWarmup
from ppl_vae.pairs import Pair
from ppl_vae.runtime import make_fabric
from ppl_vae.training import DivergenceError, Fit, checkpoints, engines, step as training_step
from ppl_vae.training.engines import LoopEngine
from ppl_vae.training.strides import Strides

pytestmark = pytest.mark.filterwarnings("ignore:parameter 'guide.unused'")

ROWS, BATCH = 47, 5
X = torch.rand(ROWS, 6, generator=torch.Generator().manual_seed(3))


@pytest.fixture(autouse=True)
def compiled_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the fifth step on."""
    monkeypatch.setattr(Recording, "compile", as_if_compiled)
    monkeypatch.setattr(training_step, "COMPILED", (5, 12))
    monkeypatch.setattr(training_step, "RECORD_AFTER", 3)
    monkeypatch.setattr(capture, "RECORD_AFTER", 3)


@pytest.fixture
def strides(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the strides."""
    taken: list[int] = []
    run = LoopEngine.run

    def counted(self: LoopEngine, order: Tensor, first: int, betas: Any) -> list[list[float]]:
        taken.append(len(betas))
        return run(self, order, first, betas)

    monkeypatch.setattr(LoopEngine, "run", counted)
    return taken


class Replayed:
    """In the place of a CUDA graph, on a CPU: warm-ups that are put back, and calls of the function."""

    def __init__(self, function: Callable[[], None], state: list[Tensor], device: Any) -> None:
        kept, generators = [tensor.detach().clone() for tensor in state], torch.get_rng_state()
        with torch.no_grad():
            for _ in range(2):
                function()
            for tensor, value in zip(state, kept, strict=True):
                tensor.copy_(value)
        torch.set_rng_state(generators)
        self.function = torch.no_grad()(function)

    def __call__(self) -> None:
        self.function()


@pytest.fixture(params=["loop", "graph"])
def engine(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, strides: list[int]
) -> str:
    """Which engine takes the steps; that of a GPU works on the CPU here."""
    if request.param == "graph":
        made = Strides.__init__

        def with_graphs(self: Strides, *given: Any) -> None:
            made(self, *given)
            self._graphs = True

        run = engines.GraphEngine.run

        def counted(
            self: engines.GraphEngine, order: Tensor, first: int, betas: Any
        ) -> list[list[float]]:
            strides.append(len(betas))
            return run(self, order, first, betas)

        monkeypatch.setattr(Strides, "__init__", with_graphs)
        monkeypatch.setattr(engines, "CudaGraph", Replayed)
        monkeypatch.setattr(engines.GraphEngine, "run", counted)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**9, 10**9))
    return str(request.param)


class Model(nn.Module):
    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        layers: list[nn.Module] = [nn.Linear(2, 4)]
        layers += [nn.BatchNorm1d(4), nn.Dropout(0.2)] if norm else []
        self.decoder = nn.Sequential(*layers, nn.Tanh(), nn.Linear(4, 6))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            logits = self.decoder(z.reshape(-1, 2)).reshape(*z.shape[:-1], 6)
            p = dist.Bernoulli(logits=logits, validate_args=False)
            pyro.sample("x", p.to_event(1), obs=x)


class Guide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.encoder = nn.Linear(6, 4)
        self.unused = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def trained(
    single: bool = False, norm: bool = False, **options: Any
) -> tuple[Fit, dict[str, Tensor]]:
    pair = Model(norm), Guide()
    given: dict[str, Any] = {"max_epochs": 6, "batch_size": BATCH, "seed": 1, "progress": False}
    given |= {"transform": Binarization()} | options
    with patch.object(Strides, "of", return_value=None) if single else patch("builtins.id", id):
        fitted = fit(*pair, given.pop("x", X), **given)
    return fitted, {n: t.clone() for n, t in Pair(*pair).state().items()}


def require_same(one: tuple[Fit, dict[str, Tensor]], other: tuple[Fit, dict[str, Tensor]]) -> None:
    for name, value in one[1].items():
        assert torch.equal(value, other[1][name]), name
    for mine, theirs in zip(one[0].history, other[0].history, strict=True):
        assert {**mine, "seconds": 0} == {**theirs, "seconds": 0}


OPTIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "a transform of the user's": {"transform": lambda x: (torch.rand_like(x) < x).float()},
    "batch norm and dropout": {"norm": True},
    "beta": {"objective": ELBO(beta=LinearWarmup(4, start=0.1))},
    "particles": {"objective": ImportanceWeightedELBO(num_particles=3)},
    "clipped": {"clip_grad_norm": 0.05},
    "a schedule": {"lr_scheduler": partial(StepLR, step_size=2, gamma=0.5)},
    "AMSGrad, decay, float64 rate": {
        "optimizer": partial(Adam, fused=True, amsgrad=True, weight_decay=0.1, eps=1e-3)
    },
    "AdamW": {"optimizer": partial(AdamW, fused=True)},
    "Adam by default": {"optimizer": Adam},
    "SGD": {"optimizer": partial(SGD, momentum=0.9), "learning_rate": 0.1},
    "one batch": {"batch_size": ROWS, "max_epochs": 30},
}
LOOP_ALONE = {
    "a transform of the user's",
    "clipped",
    "AMSGrad, decay, float64 rate",
    "AdamW",
    "one batch",
}
GRAPH_ALONE = {"particles", "Adam by default", "SGD", "a schedule"}
"""What the fast suite takes with one engine."""


@pytest.mark.slow(but=("loop-as it is", "graph-beta"))
@pytest.mark.parametrize(
    ("engine", "options"),
    [
        pytest.param(
            *(engine, (name, options)),
            id=f"{engine}-{name}",
            marks=pytest.mark.slow if name in elsewhere else (),
        )
        for engine, elsewhere in (("loop", GRAPH_ALONE), ("graph", LOOP_ALONE))
        for name, options in OPTIONS.items()
    ],
    indirect=["engine"],
)
def test_strides_give_the_bits_of_single_steps(
    engine: str, options: tuple[str, dict[str, Any]], strides: list[int]
) -> None:
    found = trained(**options[1])
    assert sum(strides) > 15
    if "batch_size" not in options[1]:
        assert max(strides) > 3
    require_same(found, single_steps(options[0], options[1]))


_SINGLE: dict[str, tuple[Fit, dict[str, Tensor]]] = {}


def single_steps(name: str, options: dict[str, Any]) -> tuple[Fit, dict[str, Tensor]]:
    """What both engines are compared with: no engine takes these steps."""
    if name not in _SINGLE:
        pyro.set_rng_seed(0)
        _SINGLE[name] = trained(single=True, **options)
    return _SINGLE[name]


@pytest.fixture
def rough_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Inductor, it leaves out the rounding to bfloat16 between two operations: 3 % of the gradient."""

    def compile(self: Recording) -> None:
        self.compiled = True
        self.run = lambda *inputs: [
            t if t is None else t * (1 + (1e-5 if i == 0 else 0.03))
            for i, t in enumerate(self.graph.forward(*inputs))
        ]

    monkeypatch.setattr(Recording, "compile", compile)


@pytest.mark.slow(but=("loop",))
@pytest.mark.usefixtures("engine", "rough_compiler")
def test_mixed_precision_is_compiled(strides: list[int], caplog: pytest.LogCaptureFixture) -> None:
    """Steps that are compared with Pyro are compared under the same precision, up to its rounding."""
    fabric = make_fabric("cpu", "bf16-mixed")
    found = trained(fabric=fabric)
    assert sum(strides) > 15
    assert "capture is off" not in caplog.text
    require_same(found, trained(single=True, fabric=fabric))


@pytest.mark.usefixtures("rough_compiler")
def test_full_precision_is_compared_strictly(caplog: pytest.LogCaptureFixture) -> None:
    trained()
    assert "capture is off, the training goes on in Pyro: the gradient" in caplog.text


@pytest.mark.parametrize(
    ("factor", "what"),
    [((1.02, 1.0), "the loss"), pytest.param((1.0, 1.5), "the gradient", marks=pytest.mark.slow)],
)
def test_a_wrong_compiled_step_in_mixed_precision_is_found(
    factor: tuple[float, float],
    what: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def compile(self: Recording) -> None:
        self.compiled = True
        self.run = lambda *inputs: [
            t if t is None else t * factor[min(i, 1)]
            for i, t in enumerate(self.graph.forward(*inputs))
        ]

    monkeypatch.setattr(Recording, "compile", compile)
    trained(fabric=make_fabric("cpu", "bf16-mixed"))
    assert (
        f"capture is off, the training goes on in Pyro: {what} of the recorded step" in caplog.text
    )


def test_hooks_of_the_users_run_with_each_step(strides: list[int]) -> None:
    def with_hooks(single: bool) -> tuple[Any, list[float]]:
        seen: list[float] = []

        def adam(leaves: list[Tensor]) -> Adam:
            made = Adam(leaves, lr=0.01, fused=True)

            def smaller(optimizer: Any, *_: Any) -> None:
                for group in optimizer.param_groups:
                    for leaf in group["params"]:
                        if leaf.grad is not None:
                            leaf.grad.mul_(0.5).sign_()

            def look(optimizer: Any, *_: Any) -> None:
                seen.append(float(leaves[0].detach().sum()))

            made.register_step_pre_hook(smaller)
            made.register_step_post_hook(look)
            return made

        return trained(single, optimizer=adam), seen

    (found, seen), (truth, expected) = with_hooks(False), with_hooks(True)
    assert sum(strides) > 15
    assert seen == expected
    assert len(seen) == found[0].steps
    require_same(found, truth)


class Fragile(Model):
    """Its loss is NaN in some steps, once it has run 40 times."""

    runs: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, x: Tensor) -> None:
        if self.training:
            self.runs.add_(1)
        far = (self.runs > 40) & (x.sum() > 16)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            logits = torch.where(far, torch.nan, 1.0) * self.decoder(z)
            p = dist.Bernoulli(logits=logits, validate_args=False)
            pyro.sample("x", p.to_event(1), obs=x)


def counting(leaves: list[Tensor]) -> Adam:
    """With a hook that changes the step size and counts: what it has done cannot be put back."""
    made = Adam(leaves, lr=0.02, fused=True)

    def change(optimizer: Any, *_: Any) -> None:
        optimizer.param_groups[0]["lr"] *= 0.99

    made.register_step_post_hook(change)
    return made


HOOKS: dict[str, Any] = {
    "Adam": partial(Adam, lr=0.02, fused=True),
    "a hook": counting,
    "ClippedAdam": pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.99}),
}


@pytest.mark.parametrize(
    ("engine", "optimizer"),
    [
        ("loop", "Adam"),
        pytest.param("loop", "a hook", marks=pytest.mark.slow),
        pytest.param("graph", "ClippedAdam", marks=pytest.mark.slow),
        pytest.param("loop", "ClippedAdam", marks=pytest.mark.slow),
        pytest.param("graph", "Adam", marks=pytest.mark.slow),
        pytest.param("graph", "a hook", marks=pytest.mark.slow),
    ],
    indirect=["engine"],
)
def test_a_loss_that_is_not_finite_is_found_in_its_step(
    engine: str, optimizer: str, strides: list[int]
) -> None:
    ends = []
    for single in (False, True):
        pair = Fragile(), Guide()
        with (
            patch.object(Strides, "of", return_value=None) if single else patch("builtins.id", id),
            pytest.raises(DivergenceError) as raised,
        ):
            fit(
                *(*pair, X.round()),
                max_epochs=40,
                batch_size=BATCH,
                seed=1,
                progress=False,
                optimizer=HOOKS[optimizer],
            )
        ends.append((str(raised.value), torch.get_rng_state(), Pair(*pair).state()))
    assert sum(strides) > 15
    assert ends[0][0] == ends[1][0]
    for name, value in ends[0][2].items():
        assert torch.equal(value, ends[1][2][name]), name


@pytest.mark.parametrize("killed_after", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_resumed_training_divides_its_steps_in_another_way(
    killed_after: int, strides: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", (0.0, 0.0))  # after each stride
    whole = trained(norm=True)
    lengths = list(strides)

    class Killed(BaseException):
        pass

    run, calls = LoopEngine.run, 0

    def deadly(self: LoopEngine, order: Tensor, first: int, betas: Any) -> list[list[float]]:
        nonlocal calls
        calls += 1
        if calls == killed_after:
            run(self, order, first, betas)
            raise Killed
        return run(self, order, first, betas[:2])

    monkeypatch.setattr(LoopEngine, "run", deadly)
    with pytest.raises(Killed):
        trained(norm=True, run_dir=tmp_path)
    monkeypatch.setattr(LoopEngine, "run", run)
    require_same(trained(norm=True, run_dir=tmp_path, resume=True), whole)
    assert lengths


def test_a_recording_that_is_no_longer_right_is_noticed(strides: list[int]) -> None:
    """What a hook changes is seen by the look at the Python state, before the next stride."""

    class Weighted(Model):
        weight = 1.0

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                logits = self.weight * self.decoder(z)
                p = dist.Bernoulli(logits=logits, validate_args=False)
                pyro.sample("x", p.to_event(1), obs=x)

    def run(single: bool) -> tuple[Fit, dict[str, Tensor]]:
        model = Weighted()
        steps = 0

        def adam(leaves: list[Tensor]) -> Adam:
            made = Adam(leaves, lr=0.01, fused=True)

            def change(*_: Any) -> None:
                nonlocal steps
                steps += 1
                model.weight = 1.0 if steps < 90 else 5.0

            made.register_step_post_hook(change)
            return made

        with patch.object(Strides, "of", return_value=None) if single else patch("builtins.id", id):
            fitted = fit(
                model,
                Guide(),
                X.round(),
                max_epochs=30,
                batch_size=BATCH,
                seed=1,
                progress=False,
                optimizer=adam,
            )
        return fitted, Pair(model, Guide()).state()

    found, truth = run(False), run(True)
    assert sum(strides) > 50
    assert found[0].history[-1]["loss"] == pytest.approx(truth[0].history[-1]["loss"], rel=1e-3)
