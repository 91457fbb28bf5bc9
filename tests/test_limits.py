"""The texts of a run folder are read within limits (docs/security.md): its config, its results, its tables."""

from __future__ import annotations

import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from attacks import GUIDE, MODEL, change, model_with, part, promise, run as run

from ppl_vae.runs import load_run, read_csv
from ppl_vae.runtime import (
    CorruptFileError,
    load_json,
    load_yaml,
    random_state,
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
def test_a_sparse_table_is_not_read(run: Path) -> None:
    (run / "evaluation.json").write_text('{"table_sha256": "0"}')
    with (run / "evaluation.csv").open("wb") as table:
        table.truncate(2**33)
    with pytest.raises(CorruptFileError, match=r"evaluation\.csv: it is larger than"):
        load_run(run)


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
