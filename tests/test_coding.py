"""Numbers on a stack and in sealed files: popped is what was pushed, at the length that probabilities say."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ppl_vae.coding import (
    LEAST,
    SEAL,
    Pops,
    Pushes,
    Reader,
    Stack,
    Writer,
    WrongFileError,
    require_constriction,
    sealed,
    unsealed,
)

LIBRARY = require_constriction("tests", "compress")
ADVERSARIAL: dict[str, list[float]] = {
    "once hung perfect tables": [0.15, 0.69, 0.15],
    "the same, twice": [0.15, 0.69, 0.15, 0.15, 0.69, 0.15],
    "rare": [1e-300, 1.0],
    "denormal": [5e-324, 1.0],
    "nearly certain": [1.0 - 1e-16, 1e-16],
    "certain": [0.0, 1.0, 0.0],
    "impossible": [0.0, 0.5, 0.5],
    "all rare": [1e-300, 2e-300],
    "not normalized": [1e300, 1e300, 3e300],
    "below a table's least": [1.0, LEAST / 2, LEAST / 2],
    "one": [1.0],
    "equal": [0.5, 0.5],
    "4096 equal": [1 / 4096] * 4096,
    "4096, one nearly certain": [1.0] + [1e-12] * 4095,
    "4096, denormal": [1.0] + [5e-324] * 4095,
}


def bits(tables: NDArray[np.float64], numbers: NDArray[np.int32]) -> float:
    """By the probabilities, which are at least 2^-24."""
    p = np.take_along_axis(tables / tables.max(1, keepdims=True), numbers[:, None], 1)[:, 0]
    p = p / (tables / tables.max(1, keepdims=True)).sum(1)
    return float(-np.log2(np.maximum(p, LEAST)).sum())


@pytest.mark.parametrize("table", ADVERSARIAL.values(), ids=ADVERSARIAL)
def test_adversarial_tables(table: list[float]) -> None:
    tables = np.array([table] * 300)
    possible = np.flatnonzero(table) if np.count_nonzero(table) == 1 else np.arange(len(table))
    numbers = np.random.default_rng(0).choice(possible, 300).astype(np.int32)
    stack = Stack(LIBRARY)
    stack.push(numbers, tables)
    assert 8 * len(stack.data()) <= bits(tables, numbers) * (1 + 1e-6) + 64 + 32
    stack = Stack(LIBRARY, stack.data(), stack.initial_words)
    np.testing.assert_array_equal(stack.pop(tables), numbers)
    assert stack.is_initial


@pytest.mark.parametrize("count", [2, 3, 256, 5000])
@pytest.mark.parametrize("spread", [0.1, 3.0, 30.0])
def test_a_thousand_random_numbers_cost_what_their_probabilities_say(
    count: int, spread: float
) -> None:
    generator = np.random.default_rng(0)
    tables = np.exp(spread * generator.standard_normal((1000, count)))
    tables /= tables.sum(1, keepdims=True)
    numbers = np.array([generator.choice(count, p=p) for p in tables], dtype=np.int32)
    stack = Stack(LIBRARY)
    stack.push(numbers, tables)
    expected = bits(tables, numbers)
    leaked = 1000 * count * LEAST * 1.5  # each number has 2^-24 at least
    assert expected - 33 <= 8 * len(stack.data()) - 64 <= expected + 32 + leaked
    stack = Stack(LIBRARY, stack.data(), stack.initial_words)
    np.testing.assert_array_equal(stack.pop(tables), numbers)


def test_what_is_popped_from_nothing_is_random_and_can_be_pushed_back() -> None:
    tables = np.array([[0.7, 0.2, 0.1]] * 4000)
    stack = Stack(LIBRARY)
    assert stack.is_initial
    numbers = stack.pop(tables)
    shares = np.bincount(numbers, minlength=3) / 4000
    np.testing.assert_allclose(shares, tables[0], atol=4 * np.sqrt(0.7 * 0.3 / 4000))
    needed = bits(tables, numbers)
    assert needed - 1 <= 32 * stack.initial_words <= needed + 64 + 32
    assert not stack.is_initial
    stack.push(numbers, tables)
    assert stack.is_initial
    assert len(stack.data()) == 4 * stack.initial_words
    np.testing.assert_array_equal(Stack(LIBRARY).pop(tables), numbers)  # the same bits each time


def test_a_certain_number_takes_nothing_and_needs_nothing() -> None:
    tables = np.eye(3)[[2, 0, 1]]
    stack = Stack(LIBRARY)
    before = stack.data()
    np.testing.assert_array_equal(stack.pop(tables), [2, 0, 1])
    stack.push(np.array([2, 0, 1], dtype=np.int32), tables)
    assert stack.data() == before


def test_stirring_makes_what_is_popped_independent_of_what_was_pushed() -> None:
    table, seen = np.full((1, 256), 1 / 256), []
    for stirred in (False, True):
        stack = Stack(LIBRARY)
        stack.pop(np.repeat(table, 2000, 0))
        pairs = []
        for number in np.random.default_rng(0).integers(0, 256, 500):
            before = stack.data()
            stack.push(np.array([number], dtype=np.int32), table)
            pushed = stack.data()
            if stirred:
                stack.stir()
                assert len(stack.data()) == len(pushed)
            pairs.append((number, stack.pop(table)[0]))
            stack.push(np.array([pairs[-1][1]], dtype=np.int32), table)
            if stirred:
                stack.unstir()
            assert stack.data() == pushed
            stack.pop(table)
            assert stack.data() == before
            stack.pop(table)  # another state for the next one
        one, two = np.array(pairs).T
        seen.append(np.corrcoef(one, two)[0, 1])
    assert seen[0] == pytest.approx(1.0)
    assert abs(seen[1]) < 4 / np.sqrt(500)


def test_pushes_are_popped_in_their_order() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.rand(7, k, generator=generator).double() for k in (2, 5, 3)]
    numbers = [table.argmin(1) for table in parts]
    stack = Stack(LIBRARY)
    pushes = Pushes(stack)
    for each, table in zip(numbers, parts, strict=True):
        assert torch.equal(pushes.categorical(each, table), each)
    assert stack.is_initial  # until they are finished
    pushes.finish()
    pops = Pops(stack)
    for each, table in zip(numbers, parts, strict=True):
        assert torch.equal(pops.categorical(torch.empty(0), table), each)
    assert stack.is_initial


def test_a_damaged_stack_is_found() -> None:
    with pytest.raises(ValueError, match="its end is missing"):
        Stack(LIBRARY, b"abcde")
    with pytest.raises(ValueError, match="never ends in a zero word"):
        Stack(LIBRARY, bytes(8))


def test_a_range_coder_reads_what_it_wrote() -> None:
    tables = torch.tensor([ADVERSARIAL["once hung perfect tables"]] * 50).double()
    numbers, normal = torch.arange(50) % 3, torch.arange(-25, 25)
    writer = Writer(LIBRARY)
    writer.categorical(numbers, tables)
    writer.normal(normal, 9.0, 30)
    reader = Reader(LIBRARY, writer.data(), "test")
    assert torch.equal(reader.categorical(numbers, tables).long(), numbers)
    assert torch.equal(reader.normal(normal, 9.0, 30).long(), normal)
    with pytest.raises(ValueError, match="this test is damaged: its end is missing"):
        Reader(LIBRARY, b"abc", "test")
    with pytest.raises(WrongFileError):  # no probabilities have such an interval
        Reader(LIBRARY, b"\xff" * 400, "test").categorical(torch.empty(9), tables.repeat(60, 1))


@pytest.mark.parametrize("table", ADVERSARIAL.values(), ids=ADVERSARIAL)
def test_adversarial_tables_of_a_range_coder(table: list[float]) -> None:
    """All numbers are written, also those that the table gives the probability 0."""
    tables = np.array([table] * 300)
    tables /= tables.sum(1, keepdims=True)
    numbers = np.random.default_rng(0).choice(len(table), 300).astype(np.int32)
    writer = Writer(LIBRARY)
    writer.categorical(torch.from_numpy(numbers), torch.from_numpy(tables))
    leaked = 300 * len(table) * LEAST * 1.5  # each number has 2^-24 at least
    assert 8 * len(writer.data()) <= bits(tables, numbers) + 64 + leaked
    reader = Reader(LIBRARY, writer.data(), "test")
    found = reader.categorical(torch.empty(0), torch.from_numpy(tables))
    np.testing.assert_array_equal(found.numpy(), numbers)


@pytest.mark.parametrize("count", [2, 3, 256, 4096])
@pytest.mark.parametrize("spread", [0.1, 3.0, 30.0])
def test_a_thousand_random_numbers_of_a_range_coder(count: int, spread: float) -> None:
    generator = np.random.default_rng(1)
    tables = np.exp(spread * generator.standard_normal((1000, count)))
    tables /= tables.sum(1, keepdims=True)
    numbers = np.array([generator.choice(count, p=p) for p in tables], dtype=np.int32)
    writer = Writer(LIBRARY)
    for part in np.split(np.arange(1000), 10):  # in several calls
        writer.categorical(torch.from_numpy(numbers[part]), torch.from_numpy(tables[part]))
    expected, leaked = bits(tables, numbers), 1000 * count * LEAST * 1.5
    assert expected - 8 <= 8 * len(writer.data()) <= expected + 64 + leaked
    reader = Reader(LIBRARY, writer.data(), "test")
    found = reader.categorical(torch.empty(0), torch.from_numpy(tables))
    np.testing.assert_array_equal(found.numpy(), numbers)


def test_every_damage_of_a_sealed_file_is_found() -> None:
    header = b"abcd" + bytes([3]) + b"size"
    data = sealed(header, b"content")

    def opened(data: bytes) -> tuple[bytes, bytes]:
        return unsealed(data, b"abcd", 3, len(header), "file of tests", "write_tests")

    assert len(data) == len(header) + SEAL + len(b"content")
    assert opened(data) == (header, b"content")
    for place in range(5, len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 4
        with pytest.raises(ValueError, match="this file of tests is damaged or truncated"):
            opened(bytes(damaged))
    for length in range(5, len(data)):
        with pytest.raises(ValueError, match="damaged or truncated"):
            opened(data[:length])
    for other in (b"", b"abc", b"PK" + data):
        with pytest.raises(ValueError, match="these bytes are no file of write_tests"):
            opened(other)
    with pytest.raises(ValueError, match="the version 4 of the format, but only version 3"):
        opened(data[:4] + bytes([4]) + data[5:])


def test_without_constriction_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "constriction":
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(
        ModuleNotFoundError, match=r"^tests need .* pip install 'ppl_vae\[compress\]'"
    ):
        require_constriction("tests", "compress")
