"""The texts of a run folder are read within limits (docs/security.md): its config, its results, its tables."""

from __future__ import annotations

import copy
import functools
import json
import os
import shutil
import struct
import time
import tracemalloc
import warnings
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import pytest
import safetensors
import torch
from attacks import (
    GUIDE,
    MODEL,
    change,
    model_with,
    part,
    promise,
    run as run,
    trained as trained,
)

from ppl_vae.cli import main
from ppl_vae.data.sizes import written
from ppl_vae.runs import (
    WEIGHTS,
    Trust,
    build,
    is_of_a_run,
    load_run,
    names_in,
    read_csv,
    restore_optimizer,
)
from ppl_vae.runtime import (
    CorruptFileError,
    content_digest,
    load_json,
    load_yaml,
    random_state,
    read_metadata,
    read_tensors,
    set_random_state,
    write_tensors,
)

# -- config.yaml -----------------------------------------------------------------------------------------

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@promise(12)
@pytest.mark.parametrize(
    "text",
    [
        LAUGHS,
        "model: &a\n  class_path: *a\n",
        "a: " + "[" * 100_000,
        "- " * 5_000 + "1",
        "a: [" + "1, " * 5_000_000 + "]",
        "a: " + ":".join(["59"] * 80_000),
        "a: 2001-99-99",
        "a: !!timestamp x",
        "a: !!python/object/apply:os.system ['touch marker']",
        "a: \x00",
    ],
    ids=[
        "laughs",
        "itself",
        "deep",
        "deep blocks",
        "large",
        "base 60",
        "date",
        "tag",
        "python",
        "zero",
    ],
)
def test_a_config_is_read_within_limits(text: str, run: Path) -> None:
    (run / "config.yaml").write_text(text)
    start = time.monotonic()
    with pytest.raises((CorruptFileError, ValueError), match=r"config\.yaml"):
        load_run(run)
    assert time.monotonic() - start < 30


@promise(12)
def test_aliases_that_we_write_are_read(run: Path) -> None:
    shared = [1, 8, 8]
    sizes = {"data_shape": shared, "latent_dim": 2}
    change(run, model={**MODEL, "init_args": sizes}, guide={**GUIDE, "init_args": sizes})
    assert "*id" in (run / "config.yaml").read_text()
    load_run(run)


@promise(12)
@pytest.mark.parametrize(
    "entry",
    [
        5,
        "text",
        [1],
        {"class_path": 3, "init_args": {}},
        part("a.B") | {"init_args": 5},
        {"x": 1},
        None,
    ],
)
@pytest.mark.parametrize("role", ["model", "guide"])
def test_wrong_types_are_named(role: str, entry: Any, run: Path) -> None:
    change(run, **{role: entry})
    with pytest.raises(ValueError, match=rf"config\.yaml.*{role}"):
        load_run(run)


@promise(12)
def test_a_long_text_is_not_repeated_by_aliases(run: Path) -> None:
    text = (run / "config.yaml").read_text()
    repeated = (
        "x: &t '" + "a " * 60_000 + "'\nnote: [" + "*t, " * 20_000 + "1]\n"
    )  # 2 GiB if written
    (run / "config.yaml").write_text(text + repeated)
    with pytest.raises(CorruptFileError, match="stand for more than"):
        load_run(run)
    (run / "config.yaml").write_text(text + "note: '" + "a " * 60_000 + "'\n")
    load_run(run)


@promise(12)
def test_no_more_of_a_config_is_read_than_is_taken(run: Path) -> None:
    with (run / "config.yaml").open("r+b") as file:
        file.truncate(2**28)
    tracemalloc.start()
    with pytest.raises(CorruptFileError, match="larger than the 256 KiB"):
        load_run(run)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2**24
    with pytest.raises(ValueError, match="larger than the 256 KiB"):  # of a text in a text, too
        load_yaml("a: " + "b" * 2**18)


@promise(12)
def test_a_text_that_is_no_argument_is_not_read(run: Path) -> None:
    quoted: Any = "a"
    for _ in range(6):
        quoted = json.dumps([quoted])
    for text in ("a b" * 4000, quoted):
        change(run, model=model_with(network=text))
        with pytest.raises(ValueError, match=r"a text of \d+ characters is not an argument"):
            load_run(run)
    digits = ":".join(["59"] * 1000)  # of a number to base 60, which takes time to convert
    assert load_yaml(f"a: {digits}") == {"a": digits}
    digits = ":".join(["59"] * 80_000)  # a tag that says that it is a number changes nothing
    start = time.monotonic()
    assert load_yaml(f"a: !!int '{digits}'") == {"a": digits}
    assert time.monotonic() - start < 1


@promise(12)
@pytest.mark.parametrize("word", ["a", "a1", "a ", "a."])
def test_a_long_word_is_looked_at_once(word: str, run: Path) -> None:
    """Names in a text were looked for from each of its letters."""
    text = "[" + word * (9_900 // len(word)) + "b]"
    change(run, model=model_with(network=[text] * 100))
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"config\.yaml"):
        load_run(run)
    assert time.monotonic() - start < 10


@promise(12)
@pytest.mark.parametrize("as_text", [False, True])
def test_parts_of_parts_end(as_text: bool, run: Path) -> None:
    """jsonargparse took twice as long for each further one: for twenty of them, hours."""
    model: Any = part("torch.nn.ReLU")
    for _ in range(5):
        model = part("torch.nn.ModuleList", modules=[model])
    assert len(build(model, role="model", trust=Trust.of(False, run))[0]) == 1
    for i in range(25):
        inner = json.dumps(model) if as_text and i == 0 else model
        model = part("torch.nn.ModuleList", modules=[inner])
    change(run, model=model)
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"config\.yaml, .*a part of a part, more than 6 times"):
        load_run(run)
    assert time.monotonic() - start < 5


@promise(12)
@pytest.mark.parametrize(
    "modules",
    [
        [part("torch.nn.ReLU")] * 500,
        ["torch.nn.ReLU"] * 500,
        [{"init_args": {}}] * 500,
        pytest.param([1] * 30_000, marks=pytest.mark.slow),
        [[part("torch.nn.ReLU")] * 20] * 25,
    ],
)
def test_many_parts_are_not_built(modules: list[Any], run: Path) -> None:
    """jsonargparse takes the square of their number: a file of some kilobytes took minutes."""
    spec = part("torch.nn.ModuleList", modules=[part("torch.nn.ReLU")] * 50)
    assert len(build(spec, role="model", trust=Trust.of(False, run))[0]) == 50
    change(run, model=part("torch.nn.ModuleList", modules=modules))
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"config\.yaml, model.*too much to be an argument"):
        load_run(run)
    assert time.monotonic() - start < 5


@promise(2)
@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("list[a.B]", ["a.B"]),
        ("Union[a . b.C, 1.5 | d1.E2]", ["a.b.C", "d1.E2"]),
        ("[1os.system, a.1b.c, x.y.2, é.ü]", ["os.system", "b.c", "x.y", "é.ü"]),
        ("[1.5, 2., .3, a, 4.c]", []),
        ("[2a. b3 .c|d\n.e]", ["a.b3.c", "d.e"]),
    ],
)
def test_all_names_in_a_text_are_found(text: str, names: list[str]) -> None:
    found = [name for _, _, name in names_in({"x": text}, "model", "f")]
    assert found[: len(names)] == names  # then those of the values that it has as YAML
    assert bool(found) == bool(names)


@promise(12)
def test_a_long_value_is_not_searched_for_hours(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What jsonargparse says of a wrong value contains it, and looked for its words from each word in it."""
    change(run, seed="type collections.abc.Callable[] expects " * 600)
    start = time.monotonic()
    assert main(["evaluate", str(run)]) == 1
    assert time.monotonic() - start < 5
    error = capsys.readouterr().err
    assert "--seed: expected int, got" in error
    assert len(error) < 6000


@promise(12)
def test_texts_in_texts_do_not_multiply(run: Path) -> None:
    """Each of them is small, and is read within the limits of its own; together they took hours."""
    text: Any = "[" + "1, " * 500 + "1]"
    for times in (200, 150, 50):
        text = "[&a " + json.dumps(text) + ", *a" * times + "]"
    change(run, optimizer=text)
    assert (run / "config.yaml").stat().st_size < 20_000
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"config\.yaml, optimizer.*too much"):
        load_run(run)
    assert time.monotonic() - started < 30


# -- results, metadata and tables ------------------------------------------------------------------------


@promise(13)
@pytest.mark.parametrize(
    "text", ['{"a": ' + "[" * 100_000, '{"a": ' * 300 + "1" + "}" * 300, "[1]"]
)
@pytest.mark.parametrize("file", ["evaluation.json", "diagnosis.json"])
def test_json_is_read_within_limits(file: str, text: str, run: Path) -> None:
    (run / file).write_text(text)
    with pytest.raises(CorruptFileError, match=file):
        load_run(run)


@promise(13)
def test_metadata_and_tables_are_read_within_limits(run: Path, tmp_path: Path) -> None:
    deep: Any = 1
    for _ in range(300):
        deep = [deep]
    write_tensors(tmp_path / "deep.safetensors", {}, {"a": deep})
    with pytest.raises(CorruptFileError, match="levels"):
        read_tensors(tmp_path / "deep.safetensors")
    (run / "metrics.csv").write_text("epoch\n" + "1" * 200_000 + "\n")
    with pytest.raises(CorruptFileError, match=r"metrics\.csv"):
        load_run(run)
    with (run / "metrics.csv").open("w") as file:
        file.truncate(2**30)
    with pytest.raises(CorruptFileError, match="it is larger than the 256 MiB"):
        load_run(run)
    (run / "metrics.csv").unlink()
    (run / "evaluation.json").write_text('{"a": "' + "b" * 2**23 + '"}')
    with pytest.raises(CorruptFileError, match="larger than the 8192 KiB"):
        load_run(run)
    with pytest.raises(ValueError, match="larger than the 32768 KiB"):
        load_json('{"a": "' + "b" * 2**25 + '"}')


@promise(13)
def test_short_lines_and_short_lists_do_not_multiply(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    file.write_text(",".join(f"c{i}" for i in range(20_000)) + "\n" + "1\n" * 20_000)
    started = time.monotonic()
    assert read_csv(file)[0] == {"c0": 1.0}
    assert time.monotonic() - started < 5
    started = time.monotonic()
    with pytest.raises(ValueError, match="levels"):
        load_json('{"a": ' + "[" * 150 + "]" * 150 + "}")
    assert load_json('{"a": "[[[[", "b": [[1]]}')["b"] == [[1]]
    load_json('{"a": [' + ",".join(["[]"] * 1_000_000) + "]}")
    assert time.monotonic() - started < 20


@pytest.mark.slow
@promise(13)
def test_a_table_of_very_many_lines_is_not_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "metrics.csv").write_text("a\n" + "1\n" * 2_000_001)
    with pytest.raises(CorruptFileError, match=r"metrics\.csv: it has more than the 2000000 lines"):
        load_run(run)
    monkeypatch.setattr("ppl_vae.runs.folder._MOST_LINES", 3)
    (run / "metrics.csv").write_text("a\n1\n\n1\n")
    assert len(load_run(run).history) == 2
    (run / "metrics.csv").write_text("a\n1\n\n1\n1\n")
    with pytest.raises(CorruptFileError, match="more than the 3 lines"):
        load_run(run)


@promise(13)
def test_a_new_file_is_not_taken_for_a_sparse_one(tmp_path: Path) -> None:
    """ZFS says for some seconds that one block of it is written, and some file systems say that none is."""
    file = tmp_path / "a.safetensors"
    write_tensors(file, {"a": torch.zeros(2)}, {"b": 1})
    for blocks, is_read in ((0, True), (1, True), (8, False)):
        found = SimpleNamespace(st_size=2**31, st_blocks=blocks)
        assert (written(cast(os.stat_result, found)) == 2**31) == is_read
        with (
            patch("os.fstat", return_value=found),
            nullcontext()
            if is_read
            else pytest.raises(CorruptFileError, match="were ever written"),
        ):
            assert read_metadata(file) == {"b": 1}


@promise(13)
@pytest.mark.parametrize("name", ["posterior.nc", "plots/khat.png"])
def test_a_long_hole_is_not_searched(name: str, run: Path) -> None:
    """Of which weights it is may be said at both of its ends; what is between them is not searched."""
    (run / name).parent.mkdir(exist_ok=True)
    for said, others in (("0" * 64, [run / name]), (content_digest(run / WEIGHTS), [])):
        with (run / name).open("wb") as file:
            file.truncate(2**36)
            file.seek(0, os.SEEK_END)
            file.write(b"weights_sha256" + said.encode())
        start = time.monotonic()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            load_run(run)
        assert [str(w.message).partition(" belongs")[0] for w in told] == list(map(str, others))
        assert time.monotonic() - start < 5


@promise(13)
def test_a_sparse_table_is_not_read(run: Path) -> None:
    (run / "evaluation.json").write_text('{"table_sha256": "0"}')
    with (run / "evaluation.csv").open("wb") as table:
        table.truncate(2**33)
    with pytest.raises(CorruptFileError, match=r"evaluation\.csv: it is larger than"):
        load_run(run)


@promise(13)
@pytest.mark.parametrize("end", ["", "\\", "\\\n"])
def test_a_string_without_an_end_is_read_once(end: str, run: Path) -> None:
    """Each quote in it was tried as the beginning of another one."""
    (run / "evaluation.json").write_text('{"a": "' + '\\"' * 2**16 + end)
    start = time.monotonic()
    with pytest.raises(CorruptFileError, match=r"evaluation\.json"):
        load_run(run)
    assert time.monotonic() - start < 5
    assert load_json('{"a": "[[\\"[[", "b\\\\": [[1]]}') == {"a": '[["[[', "b\\": [[1]]}
    with pytest.raises(ValueError, match="levels"):
        load_json('{"a\\\\": ' + "[" * 101 + '"' + '\\"' * 9)


@promise(13)
def test_many_numbers_in_few_lines_are_not_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = ",".join(f"c{i}" for i in range(1000)) + "\n"
    file = run / "metrics.csv"
    monkeypatch.setattr("ppl_vae.runs.folder._MOST_VALUES", 3000)
    file.write_text(header + ("1," * 999 + "1\n") * 3)
    assert len(load_run(run).history) == 3
    file.write_text(header + ("1," * 999 + "1\n") * 4)
    with pytest.raises(CorruptFileError, match=r"metrics\.csv: it has more than the 3000 numbers"):
        load_run(run)
    for text in ("12," * 2**20, "a\n" + "12," * 2**20, 'a\n0,"' + '\n",12,12,"' * 2**18):
        file.write_text(text)
        tracemalloc.start()
        with pytest.raises(CorruptFileError, match=r"a line is longer than the 1048576"):
            load_run(run)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert most < 2**27
    monkeypatch.undo()
    file.write_text("a\n" + "1\n" * 2**20)  # many short ones are longer together
    assert len(load_run(run).history) == 2**20


@promise(13)
@pytest.mark.parametrize("size", [2**31, 2**40])
def test_sparse_weights_are_not_read(size: int, run: Path) -> None:
    file = run / "weights.safetensors"
    with safetensors.safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    zeros = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    header = json.dumps({"__metadata__": metadata, "a": zeros}).encode()
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header)
        stream.truncate(8 + len(header) + size)
    with pytest.raises(CorruptFileError, match=r"of which .* were ever written"):
        load_run(run)


@promise(13)
def test_a_checksum_needs_no_copy_of_the_weights(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    write_tensors(file, {"w": torch.zeros(2**24, dtype=torch.uint8), "none": torch.zeros(0, 3)})
    tracemalloc.start()
    read_tensors(file)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2**22


@promise(12)
def test_a_config_beside_is_not_read_as_a_whole(tmp_path: Path) -> None:
    """Whether a folder is one of a run is asked before anything is written into it, or below."""
    with (tmp_path / "config.yaml").open("wb") as file:
        file.write(b"model: 1")
        file.truncate(2**28)
    tracemalloc.start()
    assert not is_of_a_run(tmp_path / "weights.safetensors")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2**20


# -- checkpoints -----------------------------------------------------------------------------------------


@promise(20)
@pytest.mark.parametrize(
    ("optimizer", "name"),
    [
        (functools.partial(torch.optim.Adam, amsgrad=True), "max_exp_avg_sq"),
        (torch.optim.AdamW, "exp_avg"),
        (torch.optim.AdamW, "step"),
        (functools.partial(torch.optim.SGD, momentum=0.9), "momentum_buffer"),
        (torch.optim.Adagrad, "sum"),
    ],
)
def test_the_state_of_an_optimizer_must_fit(optimizer: Any, name: str) -> None:
    """The fused kernels wrote beyond a tensor that was too small, and the process crashed."""
    leaf = torch.nn.Parameter(torch.zeros(50))
    made = optimizer([leaf], fused=True, lr=0.1)
    leaf.grad = torch.ones(50)
    made.step()
    state = copy.deepcopy(made.state_dict())
    restore_optimizer(made, state)
    no_number = copy.deepcopy(state)
    no_number["param_groups"][0]["lr"] = torch.zeros(0)
    for shape in ((2,), (49,), (0,)):
        state["state"][0][name] = torch.zeros(shape)
        with pytest.raises(ValueError, match=rf"'{name}' of its optimizer has the shape"):
            restore_optimizer(made, copy.deepcopy(state))
    plain = type(made)([leaf], lr=0.1)  # whose own options are those of the checkpoint then
    with pytest.raises(ValueError, match=rf"'{name}' of its optimizer"):
        restore_optimizer(plain, copy.deepcopy(state))
    with pytest.raises(ValueError, match="an option of its optimizer is no number"):
        restore_optimizer(made, no_number)
    for broken in ({}, {**state, "param_groups": [1]}, {**state, "state": {0: 1}}):
        with pytest.raises(ValueError, match="the checkpoint is not one of this training"):
            restore_optimizer(made, broken)


@promise(20)
def test_a_run_with_the_state_of_another_optimizer_is_not_resumed(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(trained, bad)
    *old, file = sorted((bad / "checkpoints").iterdir())
    for older in old:
        older.unlink()
    tensors, metadata = read_tensors(file)
    averages = [name for name in tensors if name.endswith("exp_avg")]
    assert averages
    write_tensors(file, tensors | {name: torch.ones(1) for name in averages}, metadata)
    assert main(["train", "--resume", str(bad), "--max_epochs", "2"]) == 1
    assert "'exp_avg' of its optimizer has the shape (1,)" in capsys.readouterr().err


@promise(20)
def test_the_position_of_numpys_generator_is_checked() -> None:
    state = random_state(torch.device("cpu"))
    position, *rest = state["numpy"]["rest"]
    for wrong in (-1, 625, 2_000_000_000):
        with pytest.raises(ValueError, match="position"):
            set_random_state(
                {**state, "numpy": {**state["numpy"], "rest": [wrong, *rest]}}, torch.device("cpu")
            )
    set_random_state(state, torch.device("cpu"))
    assert 0 <= position <= 624


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_averages_in_another_order_of_memory_belong_to_the_same_weights(
    kind: type[torch.optim.Adam],
) -> None:
    """Those of a file are contiguous; weights of a convolution may not be, and fused kernels do not ask."""

    def start() -> tuple[torch.Tensor, torch.optim.Adam]:
        values = torch.arange(54.0).reshape(3, 2, 3, 3).to(memory_format=torch.channels_last)
        leaf = values.requires_grad_()
        return leaf, kind([leaf], lr=0.1, fused=True, amsgrad=True)

    def step(leaf: torch.Tensor, optimizer: torch.optim.Adam, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        gradient = torch.randn(3, 2, 3, 3, generator=generator)
        leaf.grad = gradient.to(memory_format=torch.channels_last)
        optimizer.step()

    whole, at_once = start()
    for seed in range(3):
        step(whole, at_once, seed)
    leaf, first = start()
    step(leaf, first, 0)
    saved = first.state_dict()
    saved["state"][0] = {n: v.clone().contiguous() for n, v in saved["state"][0].items()}
    again, second = start()
    with torch.no_grad():
        again.copy_(leaf)
    restore_optimizer(second, saved)
    for seed in (1, 2):
        step(again, second, seed)
    assert torch.equal(again, whole)
