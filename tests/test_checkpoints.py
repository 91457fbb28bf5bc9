"""Files that are whole or absent: every damage is found and named, and every state comes back."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from torch.optim import lr_scheduler as schedules

from ppl_vae import runtime
from ppl_vae.training import load_checkpoint, save_checkpoint
from ppl_vae.training.checkpoints import KEPT, checkpoint_files

TENSORS = {
    "float": torch.randn(3, 2, generator=torch.Generator().manual_seed(0)),
    "double": torch.tensor([1.0, float("nan"), float("-inf")], dtype=torch.float64),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "bool": torch.tensor([True, False]),
    "scalar": torch.tensor(7),
    "empty": torch.zeros(0, 3),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
}
METADATA = {"epoch": 3, "loss": 0.1, "best": float("-inf"), "name": "Größe ≤ 3", "none": None}


def assert_same(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a.nan_to_num(9.0), b.nan_to_num(9.0))
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    else:
        assert a == b


# -- one file --------------------------------------------------------------------------------------------


def test_tensors_and_metadata_come_back(tmp_path: Path) -> None:
    runtime.write_tensors(tmp_path / "a.safetensors", TENSORS, METADATA)
    tensors, metadata = runtime.read_tensors(tmp_path / "a.safetensors")
    assert metadata == METADATA
    assert_same(dict(sorted(tensors.items())), dict(sorted(TENSORS.items())))
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_tensors_that_share_memory_come_back_apart(tmp_path: Path) -> None:
    x = torch.arange(4.0)
    runtime.write_tensors(tmp_path / "a", {"x": x, "tail": x[2:], "same": x})
    tensors, _ = runtime.read_tensors(tmp_path / "a")
    assert tensors["tail"].tolist() == [2.0, 3.0]
    assert torch.equal(tensors["same"], x)


@pytest.mark.parametrize("moment", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failure_between_write_and_rename_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, error: BaseException
) -> None:
    path = tmp_path / "state"
    runtime.write_bytes(path, b"old")

    def fail(*_: Any) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(os, moment, fail)
        with pytest.raises(type(error)):
            runtime.write_bytes(path, b"new and longer")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["state"]
    runtime.write_bytes(path, b"new and longer")
    assert path.read_bytes() == b"new and longer"


def test_the_content_is_on_disk_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor: int) -> None:
        events.append("fsync")
        fsync(descriptor)

    def watched_replace(source: Path, target: Path) -> None:
        assert source.read_bytes() == b"content"
        assert source.parent == target.parent  # a rename across file systems would not be atomic
        events.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    runtime.write_bytes(tmp_path / "state", b"content")
    assert events == ["fsync", "replace", "fsync"]  # the file, then the folder


def test_every_truncation_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    runtime.write_tensors(path, {"w": torch.arange(6.0), "b": torch.tensor(1)}, {"epoch": 3})
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(runtime.CorruptFileError, match=r"a\.safetensors") as caught:
            runtime.read_tensors(path)
        assert caught.value.path == path


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    runtime.write_tensors(path, {"w": torch.arange(6.0), "b": torch.tensor(1)}, {"epoch": 3})
    data = path.read_bytes()
    whole = runtime.read_tensors(path)
    harmless = 0
    for place in range(len(data)):
        for mask in (0x01, 0x80, 0xFF):
            path.write_bytes(data[:place] + bytes([data[place] ^ mask]) + data[place + 1 :])
            try:
                found = runtime.read_tensors(path)
            except runtime.CorruptFileError:
                continue
            assert_same(found[0], whole[0])  # padding between header and data
            assert found[1] == whole[1]
            harmless += 1
    assert harmless <= 3 * 8


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"\x00" * 100, b"\xff" * 100, b"not a checkpoint" * 10]
)
def test_other_files_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "wrong.safetensors"
    path.write_bytes(content)
    with pytest.raises(runtime.CorruptFileError, match=r"wrong\.safetensors"):
        runtime.read_tensors(path)


def test_safetensors_of_others_are_named(tmp_path: Path) -> None:
    path = tmp_path / "theirs.safetensors"
    safetensors.torch.save_file({"w": torch.ones(2)}, path)
    with pytest.raises(
        runtime.CorruptFileError, match=r"theirs\.safetensors.*not written by ppl_vae"
    ):
        runtime.read_tensors(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        runtime.read_tensors(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError):
        runtime.read_tensors(tmp_path)  # a folder


# -- trees -----------------------------------------------------------------------------------------------

leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=5),
    st.integers(0, 3).map(lambda n: torch.arange(float(n))),
)
keys = st.one_of(st.integers(0, 99), st.text("abc", min_size=1, max_size=3))
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(keys, inner, max_size=3),
    ),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None, database=None, derandomize=True)
@given(tree=trees)
def test_any_tree_comes_back(tree: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    flat, tensors = runtime.flatten({"tree": tree})
    path = tmp_path_factory.getbasetemp() / "tree.safetensors"
    runtime.write_tensors(path, tensors, {"flat": flat})
    read, metadata = runtime.read_tensors(path)
    assert_same(runtime.unflatten(metadata["flat"], read), {"tree": tree})


def test_two_tensors_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a\.b"):
        runtime.flatten({"a.b": torch.zeros(1), "a": {"b": torch.ones(1)}})


def test_what_cannot_be_saved_is_named() -> None:
    with pytest.raises(TypeError, match=r"state\.1\.hook.*function"):
        runtime.flatten({"state": [1, {"hook": lambda: None}]})
    with pytest.raises(TypeError, match="key"):
        runtime.flatten({(1, 2): torch.zeros(1)})


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
    """Eight steps in one go, against four, a file, and four more with everything made anew."""
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
    (tmp_path / ".step-000000003.safetensors.123.tmp").write_bytes(b"half")
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
