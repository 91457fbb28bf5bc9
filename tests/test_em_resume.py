"""`fit_em` killed after any iteration and resumed ends with the bits of a call that never was."""

from __future__ import annotations

import csv
import os
import signal
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pyro
import pyro.distributions as dist
import pytest
import torch
from forked import Forked
from torch import Tensor, nn

from ppl_vae.cli import main
from ppl_vae.em import GradientSteps, StepSize, checkpoints, fit_em
from ppl_vae.models import BernoulliMixture, GaussianMixture, ProbabilisticPCA
from ppl_vae.runs import RunFolder, read_config, save_checkpoint
from ppl_vae.runtime import CorruptFileError, read_tensors


class Killed(BaseException):
    """In place of a kill."""


@pytest.fixture(autouse=True)
def every_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", 0.0)


@pytest.fixture
def kill_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Sets after which checkpoint from now on a call is killed; None for never."""
    left: list[int | None] = [None]
    save = checkpoints.EMCheckpoints.save

    def save_and_die(self: checkpoints.EMCheckpoints, *args: Any, **how: Any) -> None:
        save(self, *args, **how)
        if left[0] is not None:
            left[0] -= 1
            if left[0] <= 0:
                raise Killed

    monkeypatch.setattr(checkpoints.EMCheckpoints, "save", save_and_die)
    return lambda count: left.__setitem__(0, count)


# -- all kinds of EM -------------------------------------------------------------------------------------


def clusters() -> Tensor:
    """Two groups far from the origin, `(60, 3)`."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(60, 3, generator=generator, dtype=torch.float64)
    return x + 2.0 * (torch.arange(60) % 2).unsqueeze(1) + 50.0


def bits() -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.rand(60, 5, generator=generator).lt(0.4).float()


class Location(nn.Module):
    """z ~ N(loc, I) and x ~ N(z, I); `scale` is a `pyro.param`, as `shift` is in the guide."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(3, dtype=torch.float64))

    def forward(self, x: Tensor) -> None:
        scale = pyro.param("scale", torch.ones((), dtype=x.dtype), dist.constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.loc, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, scale).to_event(1), obs=x)


class Guide(nn.Module):
    """Batch norm has running averages, which the E step changes; the draws of its ELBO are random."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), nn.Dropout(0.2)).double()

    def forward(self, x: Tensor) -> None:
        shift = pyro.param("shift", torch.zeros(3, dtype=x.dtype))
        z = self.network(x) + shift
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.StudentT(5.0, z, 0.7).to_event(1))


class Repairing(GaussianMixture):
    """Its second M step warns of a repair, and moves the means away, so that the bound falls."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__((3,), 2, "diagonal")
        self.register_buffer("calls", torch.zeros(()))

    def initialize(self, x: Tensor, seed: int = 0) -> None:
        super().initialize(x, seed)
        self.calls.zero_()

    def maximize(self, statistics: dict[str, Tensor]) -> None:
        super().maximize(statistics)
        self.calls.add_(1)
        if self.calls == 2:
            warnings.warn("repaired", stacklevel=1)
            with torch.no_grad():
                self.means.add_(0.5)


def normals(components: int = 2) -> GaussianMixture:
    return GaussianMixture((3,), components, "diagonal", min_scale=0.05).double()


def bernoullis() -> BernoulliMixture:
    return BernoulliMixture((5,), 3)


def pca() -> ProbabilisticPCA:
    return ProbabilisticPCA((3,), 2).double()


class Kind(NamedTuple):
    """A call of `fit_em`; the arguments are made anew for each, as in a new process."""

    model: Callable[[], nn.Module]
    x: Callable[[], Any]
    how: dict[str, Any]
    guide: Callable[[], nn.Module] | None = None


def collapsing() -> Tensor:
    return torch.cat([clusters(), torch.full((5, 3), 90.0, dtype=torch.float64)])


STEPS = GradientSteps(2, 0.05)
KINDS = {
    "closed form": Kind(normals, clusters, {}),
    "closed form, in batches": Kind(normals, lambda: list(clusters().split(25)), {}),
    "closed form, hard": Kind(normals, clusters, {"hard": True}),
    "a point that is not saved": Kind(pca, clusters, {}),
    "converges early": Kind(normals, clusters, {"tolerance": 0.01}),
    "repairs": Kind(partial(normals, 4), collapsing, {}),
    "repair that lowers the bound": Kind(lambda: Repairing().double(), clusters, {}),
    "restarts": Kind(normals, clusters, {"restarts": 3, "max_iterations": 2}),
    "restarts by gradient": Kind(
        bernoullis, bits, {"restarts": 2, "m_step": STEPS, "max_iterations": 2}
    ),
    "enumeration": Kind(bernoullis, bits, {"m_step": STEPS}),
    "enumeration, hard": Kind(bernoullis, bits, {"m_step": STEPS, "hard": True}),
    "momentum": Kind(
        bernoullis,
        bits,
        {"m_step": GradientSteps(1, 0.1, partial(torch.optim.SGD, momentum=0.9))},
    ),
    "draws": Kind(pca, clusters, {"m_step": STEPS}),
    "draws, in batches": Kind(pca, clusters, {"m_step": STEPS, "batch_size": 25}),
    "guide": Kind(Location, clusters, {"m_step": STEPS}, Guide),
    "guide, in batches": Kind(Location, clusters, {"m_step": STEPS, "batch_size": 25}, Guide),
    "online": Kind(normals, clusters, {"online": StepSize(), "batch_size": 25}),
    "online, hard": Kind(normals, clusters, {"online": StepSize(), "batch_size": 25, "hard": True}),
    "online, restarts": Kind(
        normals,
        clusters,
        {"online": StepSize(), "batch_size": 25, "restarts": 2, "max_iterations": 2},
    ),
}


class Ended(NamedTuple):
    """What must be the same; numbers as text, so that NaN equals NaN and every bit counts."""

    weights: list[tuple[str, list[float]]]
    history: list[str]
    converged: bool
    notes: tuple[str, ...]


def fitted(kind: Kind, process: int, run_dir: Path | RunFolder | None = None, **how: Any) -> Ended:
    """The result of a call in a new process, so to say: its weights and generators are those of no other."""
    torch.manual_seed(process)
    seed = None if how.get("resume") else 0
    model, guide = kind.model(), None if kind.guide is None else kind.guide()
    found = fit_em(
        model,
        kind.x(),
        guide=guide,
        run_dir=run_dir,
        device="cpu",
        progress=False,
        **{"max_iterations": 4, "tolerance": 0.0, "seed": seed, **kind.how, **how},
    )
    named = list(getattr(found.model, "store", {}).get("params", {}).items())
    for module in (model, guide):
        if module is not None:
            named += [*module.named_parameters(), *module.named_buffers()]
    weights = [(name, tensor.detach().flatten().tolist()) for name, tensor in named]
    return Ended(weights, without_seconds(found.history), found.converged, found.notes)


def without_seconds(history: list[Any]) -> list[str]:
    return [str({k: v for k, v in row.items() if k != "seconds"}) for row in history]


def history_in(run_dir: Path) -> list[str]:
    with (run_dir / "metrics.csv").open() as lines:
        return without_seconds([{k: float(v) for k, v in r.items()} for r in csv.DictReader(lines)])


@pytest.mark.parametrize("name", KINDS)
def test_killed_after_every_iteration(
    name: str, tmp_path: Path, kill_after: Callable[[int | None], None]
) -> None:
    kind = KINDS[name]
    expected = fitted(kind, 0)
    kill_after(1)
    with pytest.raises(Killed):
        fitted(kind, 0, tmp_path)
    found, kills = None, 1
    while found is None:
        kill_after(
            2
        )  # the E step of the newest checkpoint is repeated, and another iteration taken
        try:
            found = fitted(kind, kills, tmp_path, resume=True)
        except Killed:
            kills += 1
            assert kills < 50
    assert found == expected
    assert history_in(tmp_path) == expected.history
    assert kills > 2
    if name == "repairs":
        assert any("min_scale" in note for note in expected.notes)
    if name == "repair that lowers the bound":
        assert expected.notes == ("repaired (iteration 2)",)
    if name == "converges early":
        assert expected.converged


@pytest.mark.parametrize("name", ["draws", "guide", "online"])
def test_without_a_seed(
    name: str, tmp_path: Path, kill_after: Callable[[int | None], None]
) -> None:
    expected = fitted(KINDS[name], 0, seed=None)
    kill_after(3)
    with pytest.raises(Killed):
        fitted(KINDS[name], 0, tmp_path, seed=None)
    kill_after(None)
    torch.manual_seed(1)
    assert fitted(KINDS[name], 1, tmp_path, seed=None, resume=True) == expected


@pytest.mark.parametrize("name", ["closed form", "draws", "guide", "online", "restarts"])
def test_a_call_that_has_ended(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It returns the same, and goes on if it may; so do its further iterations, killed or not."""
    kind = KINDS[name]
    ended = fitted(kind, 0, tmp_path)
    with monkeypatch.context() as patched:
        patched.delattr("ppl_vae.em.loop.EMLoop._maximize")
        assert fitted(kind, 1, tmp_path, resume=True) == ended
        assert (
            fitted(kind, 1, tmp_path, resume=True, tolerance=1e9)._replace(converged=False) == ended
        )
    if name == "restarts":
        with pytest.raises(ValueError, match="would have taken start 0 further"):
            fitted(kind, 2, tmp_path, resume=True, max_iterations=7)
    else:
        longer = fitted(kind, 2, tmp_path, resume=True, max_iterations=7)
        assert longer == fitted(kind, 0, max_iterations=7)


def test_starts_that_have_converged_do_not_stand_in_the_way(tmp_path: Path) -> None:
    kind = KINDS["restarts"]
    how = {"max_iterations": 300, "tolerance": 0.01}
    ended = fitted(kind, 0, tmp_path, **how)
    assert fitted(kind, 1, tmp_path, resume=True, **{**how, "max_iterations": 400}) == ended


# -- what is refused, and what is kept -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "how", "words"),
    [
        ("closed form", {"hard": True}, "hard = False, now it is True"),
        ("closed form", {"batch_size": 20}, "batch_size = 60, now it is 20"),
        ("closed form", {"restarts": 2}, "restarts = 1, now it is 2"),
        ("closed form", {"seed": 1}, "seed = 0, now it is 1"),
        ("closed form", {"initialize": False}, "initialize = True, now it is False"),
        ("closed form", {"m_step": STEPS}, "steps = ClosedForm, now it is Enumeration"),
        ("closed form", {"online": StepSize()}, r"online = None, now it is StepSize\(exponent"),
        ("online", {"online": StepSize(0.7)}, "now it is StepSize"),
        ("draws", {"m_step": GradientSteps(3, 0.05)}, r"GradientSteps.steps = 2, now it is 3"),
        ("draws", {"m_step": GradientSteps(2, 0.1)}, r"Adam.lr = 0.05, now it is 0.1"),
        (
            "draws",
            {"m_step": GradientSteps(2, 0.05, torch.optim.SGD)},
            "optimizer = Adam, now it is SGD",
        ),
    ],
)
def test_other_options_are_refused(
    name: str, how: dict[str, Any], words: str, tmp_path: Path
) -> None:
    fitted(KINDS[name], 0, tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(ValueError, match=words):
        fitted(KINDS[name], 0, tmp_path, resume=True, **how)
    assert before == {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}


def test_other_rows_and_parameters_are_refused(tmp_path: Path) -> None:
    kind = KINDS["closed form"]
    fitted(kind, 0, tmp_path)
    with pytest.raises(ValueError, match="the rows of x are other rows"):
        fitted(kind._replace(x=lambda: clusters() + 1), 0, tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"parameter model.means = \(2, 3\), now it is \(3, 3\)"):
        fitted(kind._replace(model=partial(normals, 3)), 0, tmp_path, resume=True)


def test_folders(tmp_path: Path) -> None:
    kind, run = KINDS["closed form"], tmp_path / "run"
    with pytest.raises(ValueError, match="resume=True needs the run_dir"):
        fitted(kind, 0, resume=True)
    with pytest.raises(FileNotFoundError, match="no checkpoint to resume from"):
        fitted(kind, 0, run, resume=True)
    assert not run.exists()
    expected = fitted(kind, 0, run)
    with pytest.raises(FileExistsError, match="holds checkpoints of an earlier training"):
        fitted(kind, 0, run)
    newest, _ = sorted((run / "checkpoints").iterdir(), reverse=True)
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="continuing from step-000000003"):
        assert fitted(kind, 0, run, resume=True) == expected
    for file in (run / "checkpoints").iterdir():
        file.write_bytes(b"")
    with pytest.raises(CorruptFileError, match="no other checkpoint in the folder is good"):
        fitted(kind, 0, run, resume=True)
    for file in (run / "checkpoints").iterdir():
        file.unlink()
    with pytest.raises(FileExistsError, match="holds the metrics of an earlier training"):
        fitted(kind, 0, run)


def test_a_run_is_replaced_after_the_first_m_step(
    tmp_path: Path, kill_after: Callable[[int | None], None]
) -> None:
    kind = KINDS["closed form"]
    for iterations, left in ((1, "first"), (2, "second")):
        run = tmp_path / left
        with RunFolder.new(run, {"name": "first"}) as folder:
            fitted(kind, 0, folder)
        kill_after(iterations)
        with (
            pytest.raises(Killed),
            RunFolder.new(run, {"name": "second"}, overwrite=True) as folder,
        ):
            fitted(kind, 0, folder)
        kill_after(None)
        assert read_config(run)["name"] == left


def test_checkpoints_take_their_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []

    def count(folder: Path, step: int, *content: Any) -> None:
        written.append(step)
        save_checkpoint(folder, step, *content)

    monkeypatch.setattr(checkpoints, "save_checkpoint", count)
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", 3600.0)
    fitted(KINDS["closed form"], 0, tmp_path)
    assert written == [0, 4]  # where it begins, and its end


# -- the command line ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_killed_command_goes_on(
    how: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is to go on forever, so that no machine is too slow to kill it in time."""
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", 1.0)  # as in the killed process
    killed, never = tmp_path / "killed", tmp_path / "never killed"
    options = (
        *("--model", "BernoulliMixture", "--model.components", "3", "--binarize", "dynamic"),
        *("--max_rows", "300", "--tolerance", "0", "--quiet"),
    )
    for_ever = ("--max_iterations", "1000000000")
    process = Forked(
        lambda: main(["em", "--run_dir", str(killed), *options, *for_ever]), tmp_path / "said"
    )
    try:
        deadline = time.monotonic() + 120
        while not (killed / "metrics.csv").is_file() or len(history_in(killed)) < 2:
            assert process.wait(0) is None, process.said.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(process.pid, how)
        code = process.wait(60)
    finally:
        process.kill()
    errors = process.said.read_text()
    if how == signal.SIGINT:
        assert code == 130
        assert f"ppl-vae em --resume {killed}" in errors.replace("'", "")
        assert "Traceback" not in errors
    else:
        assert code == -signal.SIGKILL
    assert not (killed / "weights.safetensors").exists()
    iterations = ("--max_iterations", str(len(history_in(killed)) + 3))
    with patch("ppl_vae.cli.em._draw"):  # takes most of the time
        assert main(["em", "--resume", str(killed), *iterations, "--quiet"]) == 0
        assert main(["em", "--run_dir", str(never), *options, *iterations]) == 0
    weights, others = (read_tensors(f / "weights.safetensors")[0] for f in (killed, never))
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert history_in(killed) == history_in(never)
    assert {f.name for f in killed.iterdir()} == {f.name for f in never.iterdir()}
    # The one before the newest is there by the clock.
    newest = [max(f.name for f in (run / "checkpoints").iterdir()) for run in (killed, never)]
    assert newest[0] == newest[1]
    for name in ("evaluation.json", "evaluation.csv", "config.yaml"):
        assert (killed / name).read_bytes() == (never / name).read_bytes()
