"""A folder of checkpoints: a run that was stopped or killed goes on as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler as schedules
from torch.utils.data import DataLoader, TensorDataset
from trainings import HELD_OUT, Guide, Model, X, read_csv, same, scripted, train, weights

import ppl_vae
from ppl_vae import refit_guide, runtime
from ppl_vae.checks import PairWarning
from ppl_vae.guides import MeanField
from ppl_vae.likelihoods import Binomial
from ppl_vae.models import VAE
from ppl_vae.networks import MLP
from ppl_vae.objectives import (
    ELBO,
    ImportanceWeightedELBO,
    LinearWarmup,
    Schedule,
)
from ppl_vae.runs import checkpoint_files, load_checkpoint, save_checkpoint
from ppl_vae.runs.checkpoints import KEPT
from ppl_vae.runtime import read_tensors
from ppl_vae.training import checkpoints


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "Adam-fused": lambda p: torch.optim.Adam(p, lr=0.1, fused=True, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.1, centered=True),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.1),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.1),
}
SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "StepLR": lambda o: schedules.StepLR(o, 2),
    "MultiStepLR": lambda o: schedules.MultiStepLR(o, [2, 5]),
    "LambdaLR": lambda o: schedules.LambdaLR(o, lambda epoch: 0.9**epoch),
    "Cosine": lambda o: schedules.CosineAnnealingLR(o, 10),
    "WarmRestarts": lambda o: schedules.CosineAnnealingWarmRestarts(o, 3),
    "OneCycle": lambda o: schedules.OneCycleLR(o, 0.2, total_steps=20),
    "Plateau": lambda o: schedules.ReduceLROnPlateau(o, patience=1),
    "Sequential": lambda o: schedules.SequentialLR(
        o, [schedules.LinearLR(o), schedules.ExponentialLR(o, 0.9)], [3]
    ),
}


def steps(
    net: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any, which: range
) -> list[float]:
    rates = []
    for i in which:
        optimizer.zero_grad()
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(i))
        loss = net(x).square().mean()
        loss.backward()
        optimizer.step()
        if isinstance(scheduler, schedules.ReduceLROnPlateau):
            scheduler.step(float(i % 3))
        else:
            scheduler.step()
        rates.append(float(optimizer.param_groups[0]["lr"]))
    return rates


@pytest.mark.parametrize(
    ("optimizer", "schedule"),
    [(name, "StepLR") for name in OPTIMIZERS]
    + [("SGD", name) for name in SCHEDULES if name != "StepLR"],
)
def test_optimizers_and_schedules_go_on_from_a_file(
    tmp_path: Path, optimizer: str, schedule: str
) -> None:
    """Eight steps in one go, against four, a file, and four more with everything made again."""
    net = network()
    opt = OPTIMIZERS[optimizer](net.parameters())
    plan = SCHEDULES[schedule](opt)
    expected_rates = steps(net, opt, plan, range(8))
    expected = [p.detach().clone() for p in net.parameters()]

    net = network()
    opt = OPTIMIZERS[optimizer](net.parameters())
    plan = SCHEDULES[schedule](opt)
    steps(net, opt, plan, range(4))
    state = {"net": net.state_dict(), "opt": opt.state_dict(), "plan": plan.state_dict()}
    save_checkpoint(tmp_path, 4, state, {})

    net = network()
    opt = OPTIMIZERS[optimizer](net.parameters())
    plan = SCHEDULES[schedule](opt)
    loaded, _ = load_checkpoint(tmp_path)
    net.load_state_dict(loaded["net"])
    opt.load_state_dict(loaded["opt"])
    plan.load_state_dict(loaded["plan"])
    assert steps(net, opt, plan, range(4, 8)) == expected_rates[4:]
    for parameter, value in zip(net.parameters(), expected, strict=True):
        assert torch.equal(parameter, value)


def test_random_generators_go_on_from_a_file(tmp_path: Path) -> None:
    def draw() -> list[float]:
        return [
            float(torch.randn(())),
            float(np.random.normal()),
            random.gauss(0.0, 1.0),
            random.random(),
        ]

    draw()  # numpy and Python keep the second of two Gaussians
    save_checkpoint(tmp_path, 1, {"generators": runtime.random_state(torch.device("cpu"))}, {})
    expected = [draw() for _ in range(3)]
    saved, _ = load_checkpoint(tmp_path)
    runtime.set_random_state(saved["generators"], torch.device("cpu"))
    assert [draw() for _ in range(3)] == expected


# -- a folder of checkpoints -----------------------------------------------------------------------------


def save_three(folder: Path) -> list[Path]:
    for step in (5, 10, 100):
        save_checkpoint(folder, step, {"w": torch.full((2,), float(step))}, {"step": step})
    return checkpoint_files(folder)


def test_the_newest_ones_are_kept(tmp_path: Path) -> None:
    files = save_three(tmp_path)
    assert [f.name for f in files] == ["step-000000100.safetensors", "step-000000010.safetensors"]
    assert len(files) == KEPT
    state, facts = load_checkpoint(tmp_path)
    assert facts == {"step": 100}
    assert state["w"].tolist() == [100.0, 100.0]


def test_what_a_killed_writer_left_behind_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".step-000000003.01ab23cd.writing.safetensors").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    save_checkpoint(tmp_path, 4, {}, {})
    assert sorted(os.listdir(tmp_path)) == ["notes.txt", "step-000000004.safetensors"]


def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path: Path) -> None:
    newest, before = save_three(tmp_path)
    data = newest.read_bytes()
    newest.write_bytes(data[:-3])
    with pytest.warns(UserWarning, match=rf"{newest.name}.*continuing from {before.name}"):
        state, facts = load_checkpoint(tmp_path)
    assert facts == {"step": 10}
    assert state["w"].tolist() == [10.0, 10.0]
    newest.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_checkpoint(tmp_path)[1] == {"step": 100}


def test_if_all_are_damaged_the_newest_is_named_once(tmp_path: Path) -> None:
    files = save_three(tmp_path)
    for file in files:
        file.write_bytes(b"")
    with pytest.raises(runtime.CorruptFileError, match="no other checkpoint") as caught:
        load_checkpoint(tmp_path)
    assert caught.value.path == files[0]
    assert str(caught.value).count(files[0].name) == 1


def test_no_checkpoint_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint to resume from"):
        load_checkpoint(tmp_path / "checkpoints")


def test_an_existing_run_is_not_overwritten(tmp_path: Path) -> None:
    train(run_dir=tmp_path)
    before = (tmp_path / "metrics.csv").read_bytes()
    files = {f: f.read_bytes() for f in checkpoint_files(tmp_path / "checkpoints")}
    with pytest.raises(FileExistsError, match="resume=True"):
        train(run_dir=tmp_path)
    assert (tmp_path / "metrics.csv").read_bytes() == before
    assert {f: f.read_bytes() for f in checkpoint_files(tmp_path / "checkpoints")} == files


# -- resuming --------------------------------------------------------------------------------------------


def everything(folder: Path, model: Any, guide: Any) -> tuple[Any, Any, Any]:
    rows = [
        {n: v for n, v in r.items() if n != "seconds"} for r in read_csv(folder / "metrics.csv")
    ]
    state, facts = load_checkpoint(folder / "checkpoints")
    return weights(model, guide), rows, (facts["progress"]["step"], state["optimizer"])


class Stop(Exception):
    pass


def stop_after(calls: int) -> Callable[[Tensor], Tensor]:
    def transform(x: Tensor) -> Tensor:
        nonlocal calls
        calls -= 1
        if calls < 0:
            raise Stop
        return x + 0.1 * torch.randn(x.shape)

    return transform


@pytest.mark.parametrize("capture", [True, False])
@pytest.mark.parametrize("calls", [3, 9, 14])
def test_a_stopped_run_goes_on_bit_by_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int, capture: bool
) -> None:
    """A checkpoint after every step; stopped within an epoch, and continued with fresh modules."""
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", (0.0, 0.0))
    options: dict[str, Any] = {
        "max_epochs": 4,
        "validation": HELD_OUT,
        "patience": 2,
        "lr_scheduler": lambda o: schedules.StepLR(o, 2, 0.5),
        "objective": ELBO(beta=LinearWarmup(2)),
        "capture": capture,
        "seed": None,
    }
    model, guide = Model(), Guide()
    torch.manual_seed(3)
    train(model=model, guide=guide, run_dir=tmp_path / "a", transform=stop_after(999), **options)
    expected = everything(tmp_path / "a", model, guide)

    model, guide = Model(), Guide()
    torch.manual_seed(3)
    with pytest.raises(Stop):
        train(
            model=model, guide=guide, run_dir=tmp_path / "b", transform=stop_after(calls), **options
        )
    model, guide = Model(), Guide()
    torch.manual_seed(77)
    options |= {"resume": True, "transform": stop_after(999), "run_dir": tmp_path / "b"}
    train(model=model, guide=guide, **options)
    found = everything(tmp_path / "b", model, guide)
    assert same(found[0], expected[0])
    assert found[1] == expected[1]
    assert json.dumps(found[2], default=Tensor.tolist) == json.dumps(
        expected[2], default=Tensor.tolist
    )


def test_max_epochs_can_be_extended(tmp_path: Path) -> None:
    _, expected = train(run_dir=tmp_path / "a", max_epochs=5)
    train(run_dir=tmp_path / "b", max_epochs=2)
    fitted, found = train(run_dir=tmp_path / "b", max_epochs=5, resume=True)
    assert same(found, expected)
    assert [row["epoch"] for row in fitted.history] == [1, 2, 3, 4, 5]
    again, found = train(run_dir=tmp_path / "b", max_epochs=5, resume=True)  # nothing left to do
    assert same(found, expected)
    assert again.history == fitted.history
    assert (again.steps, again.stopped) == (20, "reached max_epochs = 5")


def test_a_loader_is_resumed_at_the_end_of_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", (0.0, 0.0))

    def loader() -> Any:
        return DataLoader(TensorDataset(X), batch_size=16, shuffle=True)

    _, expected = train(loader(), run_dir=tmp_path / "a", transform=stop_after(999))
    with pytest.raises(Stop):
        train(loader(), run_dir=tmp_path / "b", transform=stop_after(8))
    files = checkpoint_files(tmp_path / "b" / "checkpoints")
    assert {int(f.stem.split("-")[1]) % 4 for f in files} == {0}
    _, found = train(loader(), run_dir=tmp_path / "b", transform=stop_after(999), resume=True)
    assert same(found, expected)


def test_the_best_weights_survive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best epoch lies before the stop; what is damaged after it does not matter."""
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", (0.0, 60.0))
    seen = scripted(monkeypatch, [-9.0, -5.0, -6.0, -7.0, -8.0, -9.0])
    train(run_dir=tmp_path, validation=HELD_OUT, patience=4, max_epochs=3)
    newest = checkpoint_files(tmp_path / "checkpoints")[0]
    fitted, found = train(
        run_dir=tmp_path, validation=HELD_OUT, patience=4, max_epochs=9, resume=True
    )
    assert (fitted.epochs, fitted.best_epoch) == (6, 2)
    assert same(found, seen[1])
    assert not newest.exists()


def test_a_damaged_checkpoint_costs_no_more_than_its_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", (0.0, 60.0))
    _, expected = train(run_dir=tmp_path / "a", max_epochs=5)
    train(run_dir=tmp_path / "b", max_epochs=3)
    newest = checkpoint_files(tmp_path / "b" / "checkpoints")[0]
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=newest.name):
        _, found = train(run_dir=tmp_path / "b", max_epochs=5, resume=True)
    assert same(found, expected)


class Unnamed(Schedule):
    """A schedule of the user's, whose repr is its address."""

    def __call__(self, epoch: float) -> float:
        return 0.5

    @property
    def warmup_epochs(self) -> float:
        return 0.0


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"batch_size": 10}, "batch_size = 16, now it is 10"),
        ({"x": X[:40]}, "rows = 50, now it is 40"),
        ({"objective": ImportanceWeightedELBO()}, r"objective = ELBO\(.*now it is Importance"),
        (  # an option that older checkpoints do not name
            {"objective": ELBO(beta=LinearWarmup(2), stick_the_landing=True)},
            r"num_particles=1\), now it is ELBO\(.* stick_the_landing=True\)",
        ),
        ({"optimizer": torch.optim.SGD, "learning_rate": 0.1}, "optimizer = Adam, now it is SGD"),
        ({"lr_scheduler": lambda o: schedules.StepLR(o, 1)}, "lr_scheduler = NoneType, now"),
        ({"seed": 2}, "seed = 1, now it is 2"),
        ({"learning_rate": 0.5}, r"Adam\.lr = .*now it is 0\.5"),
        ({"clip_grad_norm": 2.0}, r"clip_grad_norm = None, now it is 2\.0"),
        ({"x": X.flip(0)}, "the rows of x are other rows, or their values have changed"),
    ],
)
def test_a_resumed_run_must_be_the_same(tmp_path: Path, changed: Any, words: str) -> None:
    train(run_dir=tmp_path, max_epochs=1)
    with pytest.raises(ValueError, match=words):
        train(**({"x": X, "run_dir": tmp_path, "resume": True} | changed))


def test_the_options_of_a_schedule_are_compared(tmp_path: Path) -> None:
    def halving(every: int) -> dict[str, Any]:
        return {"lr_scheduler": lambda o: schedules.StepLR(o, every, 0.5)}

    train(run_dir=tmp_path, max_epochs=1, **halving(1))
    with pytest.raises(ValueError, match=r"StepLR\.step_size = 1, now it is 2"):
        train(run_dir=tmp_path, resume=True, **halving(2))
    fitted, _ = train(run_dir=tmp_path, resume=True, **halving(1))
    assert [row["learning_rate"] for row in fitted.history] == [1e-3, 5e-4, 2.5e-4]


def test_a_seed_may_be_left_open_but_not_be_another(tmp_path: Path) -> None:
    _, expected = train(run_dir=tmp_path / "seeded")
    train(run_dir=tmp_path / "cut", max_epochs=1)
    _, found = train(run_dir=tmp_path / "cut", seed=None, resume=True)
    assert same(found, expected)
    train(run_dir=tmp_path / "open", max_epochs=1, seed=None)
    with pytest.raises(ValueError, match=r"seed = \d+, now it is 1"):
        train(run_dir=tmp_path / "open", resume=True)


def test_a_refit_of_another_model_is_refused(tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch_size": 16, "seed": 1, "run_dir": tmp_path}
    refit_guide(Model(), Guide(), X, max_epochs=1, **options)
    other = Model()
    with torch.no_grad():
        other.decoder.bias.add_(1.0)
    with pytest.raises(ValueError, match="the model that is kept has other weights"):
        refit_guide(other, Guide(), X, max_epochs=2, resume=True, **options)
    assert refit_guide(Model(), Guide(), X, max_epochs=2, resume=True, **options).epochs == 2


def test_other_validation_rows_are_named(tmp_path: Path) -> None:
    train(run_dir=tmp_path, max_epochs=1, validation=HELD_OUT)
    with pytest.raises(ValueError, match="the validation rows are other rows"):
        train(run_dir=tmp_path, validation=HELD_OUT + 1e-4, resume=True)


def test_objects_without_a_name_of_their_own_can_be_resumed(tmp_path: Path) -> None:
    train(run_dir=tmp_path, max_epochs=1, objective=ELBO(beta=Unnamed()))
    keep = [Unnamed() for _ in range(9)]  # other addresses
    fitted, _ = train(run_dir=tmp_path, objective=ELBO(beta=keep[-1]), resume=True)
    assert fitted.epochs == 3


def test_another_pair_cannot_be_resumed(tmp_path: Path) -> None:
    train(run_dir=tmp_path, max_epochs=1)
    model = Model()
    model.extra = nn.Linear(2, 2)
    with pytest.warns(PairWarning), pytest.raises(ValueError, match=r"parameter model\.extra"):
        train(model=model, run_dir=tmp_path, resume=True)


def test_settings_without_weights_are_compared(tmp_path: Path) -> None:
    """The likelihood would count to another number with the same classes, and weights of the same shapes."""

    def made(most: int) -> dict[str, Any]:
        model = VAE((3,), 2, MLP((4,)), Binomial(most))
        return {"model": model, "guide": MeanField((3,), 2, MLP((4,)))}

    x = torch.randint(0, 5, (20, 3), generator=torch.Generator().manual_seed(0)).float()
    train(x, run_dir=tmp_path, max_epochs=1, **made(4))
    told = r"What differs: settings\.model\.likelihood\.total_count = 4, now it is 5$"
    with pytest.raises(ValueError, match=told):
        train(x, run_dir=tmp_path, resume=True, **made(5))
    resumed, _ = train(x, run_dir=tmp_path, resume=True, **made(4))
    assert resumed.epochs == 3


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        train(run_dir=tmp_path, resume=True)


# -- killed ----------------------------------------------------------------------------------------------

KILLED = """
import sys, time
import pyro, pyro.distributions as dist, torch
from torch import nn
from torch.optim import lr_scheduler as schedules
from ppl_vae import fit
from ppl_vae.training import checkpoints
from ppl_vae.runtime import write_tensors
from ppl_vae.pairs import Pair

torch.set_num_threads(1)
checkpoints.CHECKPOINT_SECONDS = (0.0, 0.02)
folder, resume, pause = sys.argv[1], sys.argv[2] == "resume", float(sys.argv[3])

class Guide(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 4)
        )
    def forward(self, x):
        with pyro.plate("data", len(x)):
            loc, log_scale = self.body(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

decoder = nn.Linear(2, 6)

def model(x):
    pyro.module("decoder", decoder)
    bias = pyro.param("bias", lambda: torch.zeros(6))
    prior = pyro.param("prior", torch.tensor(1.0), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), prior).to_event(1))
        pyro.sample("x", dist.Bernoulli(logits=decoder(z) + bias).to_event(1), obs=x)

def binarize(x):
    time.sleep(pause)
    return torch.bernoulli(x)

torch.manual_seed(0)
x = torch.rand(90, 6)
torch.manual_seed(1)
guide = Guide()
for parameter in decoder.parameters():
    nn.init.normal_(parameter)
print("ready", flush=True)
fitted = fit(
    model, guide, x, validation=torch.bernoulli(torch.rand(40, 6)), max_epochs=12, batch_size=20,
    patience=8, lr_scheduler=lambda o: schedules.CosineAnnealingLR(o, 12), learning_rate=0.02,
    transform=binarize, run_dir=folder, resume=resume, seed=None if resume else 4,
)
state = Pair.of(model, guide).state()
assert "param.bias" in state and len(state) == 13, sorted(state)
write_tensors(folder + "/final", state, {"best": fitted.best_epoch, "steps": fitted.steps})
"""


def start(folder: Path, resume: bool, pause: float) -> subprocess.Popen[str]:
    script = folder.parent / "killed.py"
    script.write_text(KILLED)
    command = [sys.executable, str(script), str(folder), "resume" if resume else "new", str(pause)]
    path = str(Path(ppl_vae.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def end(process: subprocess.Popen[str]) -> bool:
    """Whether a process ended by itself rather than having been killed."""
    _, errors = process.communicate(timeout=120)
    assert process.returncode in (0, -signal.SIGKILL), errors
    return process.returncode == 0


def kill(folder: Path, resume: bool, seconds: float) -> bool:
    """Runs the script and kills it so many seconds after its first checkpoint; whether it had already ended."""
    process = start(folder, resume, 0.01)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.communicate()[1]
    while not list((folder / "checkpoints").glob("step-*")) and process.poll() is None:
        time.sleep(0.005)  # something to go on with
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    return end(process)


@pytest.mark.slow  # tests/test_kill.py kills a dozen
@pytest.mark.parametrize("kills", [1, 12])
def test_a_run_killed_at_any_moment_ends_as_one_that_never_was(tmp_path: Path, kills: int) -> None:
    whole = start(tmp_path / "whole", False, 0.0)
    moments = random.Random(int(time.time()))  # others each time: none of them may matter
    folder = tmp_path / "killed"
    ended = kill(folder, False, moments.uniform(0.0, 0.3))
    for _ in range(kills - 1):
        ended = ended or kill(folder, True, moments.uniform(0.1, 6.0 / kills))
    assert ended or end(start(folder, True, 0.0))
    assert end(whole)
    expected, facts = read_tensors(tmp_path / "whole" / "final")
    found, found_facts = read_tensors(folder / "final")
    assert found_facts == facts
    assert same(found, expected)
    rows = [
        [{n: v for n, v in row.items() if n != "seconds"} for row in read_csv(f / "metrics.csv")]
        for f in (tmp_path / "whole", folder)
    ]
    assert rows[0] == rows[1]


def test_checkpoints_take_a_small_share_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those at the ends of epochs come less often if they take long, unless all are asked for."""
    counts = []
    for seconds in (1e-6, 0.0):
        monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", (seconds, 60.0))
        saved: list[int] = []

        def slow(*given: Any, saved: list[int] = saved) -> None:
            saved.append(given[1])
            time.sleep(0.05)
            save_checkpoint(*given)

        monkeypatch.setattr(checkpoints, "save_checkpoint", slow)
        train(max_epochs=12, run_dir=tmp_path / str(seconds))
        monkeypatch.setattr(checkpoints, "save_checkpoint", save_checkpoint)
        counts.append(len(saved))
    assert counts == [2, 13]  # at the start and at the end; and after each epoch
