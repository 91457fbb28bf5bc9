"""Byte-pair encoding by the library tokenizers: bytes as letters, and which pairs of pieces are joined."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any


def _letters() -> tuple[str, ...]:
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return tuple(chr(byte if byte in plain else next(others)) for byte in range(256))


LETTERS = _letters()
"""A printable letter for each byte, as GPT-2 and all that followed it write them: a space is Ġ."""

_BYTES = {letter: byte for byte, letter in enumerate(LETTERS)}


def bytes_of(piece: str) -> bytes:
    """What a piece stands for.

    Example:
        >>> bytes_of("Ġdog")
        b' dog'
    """
    return bytes(map(_BYTES.__getitem__, piece))


def learned_merges(texts: Iterable[str], most: int) -> tuple[tuple[str, str], ...]:
    """The pairs of pieces that are joined, in the order in which they are learned.

    Args:
        texts: Where the pairs are counted.
        most: Most pieces, with those of one byte.

    Raises:
        ModuleNotFoundError: tokenizers is not installed.

    Example:
        >>> learned_merges(["dog", "dog"], 258)
        (('d', 'o'), ('do', 'g'))
    """
    library = _tokenizers()
    learner = library.Tokenizer(library.models.BPE())
    learner.pre_tokenizer = _words(library)
    trainer = library.trainers.BpeTrainer(
        vocab_size=most,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=list(LETTERS),
        special_tokens=[],
    )
    with _in_one_thread():
        learner.train_from_iterator(iter(texts), trainer)
    return tuple(map(tuple, json.loads(learner.to_str())["model"]["merges"]))


def encoder_of(pieces: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> Any:
    """What has a method `encode`, which gives the `ids` of a text.

    Raises:
        ModuleNotFoundError: tokenizers is not installed.
    """
    library = _tokenizers()
    encoder = library.Tokenizer(library.models.BPE(dict(pieces), list(merges)))
    encoder.pre_tokenizer = _words(library)
    return encoder


def _words(library: Any) -> Any:
    """Splits a text into words, none of whose pieces reach into the next; nothing is left out."""
    return library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "a vocabulary needs the library tokenizers, which is not installed: "
            "pip install 'ppl_vae[text]'"
        ) from error
    return tokenizers


@contextmanager
def _in_one_thread() -> Iterator[None]:
    """Lets the library use one thread, unless the user has said: it would warn in each forked process."""
    name = "TOKENIZERS_PARALLELISM"
    given = os.environ.get(name)
    os.environ.setdefault(name, "false")
    try:
        yield
    finally:
        if given is None:
            del os.environ[name]
