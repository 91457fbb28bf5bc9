"""The subcommand `translate`: a text file, line by line, in the other language of a pair."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ppl_vae.cli.mistakes import UsageError
from ppl_vae.cli.output import as_line, counted, say, show, show_lines
from ppl_vae.cli.output_files import output_file, require_no_data, require_not_read
from ppl_vae.cli.own_modules import trust_of
from ppl_vae.cli.text_source import STANDARD_INPUT, TextSource, vocabulary_of
from ppl_vae.data import Vocabulary, each_sentence
from ppl_vae.pairs import Pair, PairError
from ppl_vae.runs import Run, load_run
from ppl_vae.runtime import (
    PAD,
    PART,
    growing,
    preserve_random_state,
    progress_bar,
    require_count,
    resolve_device,
    seed_everything,
)
from ppl_vae.tasks import Translations, translate as translate_rows

MOST = 1000
"""Most translations, or beams, of a sentence: all of them are held in memory, for a few sentences at least."""

_FIRST, _LINES, _TRANSLATIONS = 16, 512, 20_000
"""Lines at a time at first, so that something is seen soon; most lines later; most translations."""


def translate(parser: ArgumentParser, given: Namespace) -> int:
    """Translates each line of a text, and prints or writes it as soon as it is found.

    Raises:
        UsageError: An option is missing, or options exclude each other.
        ValueError: The run has no pair of sentences or no vocabulary, or the file is no text, or a line is too
            long: the message says which.
    """
    options = _options(parser, given)
    output = _output(options)
    total = None
    if options.file != STANDARD_INPUT:
        total = sum(1 for _ in each_sentence(options.file, too_long=options.too_long))
    run = load_run(options.run, trust=trust_of(given, options.run), results=False)
    if output is not None:
        require_no_data(output, run.config)
    longest = _longest(run, back=options.back)
    source = TextSource(options.file, vocabulary_of(run), longest, options.too_long == "cut")
    if not (source.is_input or source.cut):
        for _ in source.rows():  # what is too long is told now, and not after hours
            pass
    pair = Pair.of(run.model, run.guide)
    if not all(bool(p.isfinite().all()) for m in pair.modules().values() for p in m.parameters()):
        raise ValueError(f"{run.path}: its weights are not finite: the training has diverged")
    pair.to(resolve_device(options.device))
    if source.is_typed and not options.quiet:
        say("one sentence a line; Ctrl-D ends")
    seen = output is None and sys.stdout is not None and sys.stdout.isatty()
    bar = progress_bar(total, "translate", "line", False if options.quiet or seen else None)
    drawing = preserve_random_state() if options.draws else nullcontext()
    with _writing(output, options.overwrite) as write, drawing, bar as progress:
        if options.draws:
            seed_everything(options.seed)
        number = 0
        for rows in _chunks(source, options.num):
            write(_translated(run, source.words, rows, number, options))
            number += len(rows)
            progress.update(len(rows))
    source.warn()
    if output is not None:
        say(f"{counted(number, 'line')} translated")
        show(output)
    return 0


def _options(parser: ArgumentParser, given: Namespace) -> Namespace:
    """All options, checked as far as no run is needed.

    Raises:
        UsageError: One is missing, or out of its range, or has no effect.
    """
    if not given.get("file"):
        raise UsageError(
            "FILE is missing: give a text file with one sentence a line, or - for standard input"
        )
    if given.get("run") is None:
        raise UsageError("--run is missing: give the folder of a run of LatentTranslation")
    options = parser.get_defaults()
    options.update(given)
    file = Path(options.file).expanduser()
    if options.file != STANDARD_INPUT and file.exists() and not (file.is_file() or file.is_dir()):
        raise UsageError(  # the text is read more than once
            f"{file} is a pipe or a device; expected a file of text. What another command writes is read by: "
            f"COMMAND | ppl-vae translate {STANDARD_INPUT} --run {options.run}"
        )
    for name in ("num", "beams"):
        try:
            require_count(f"--{name}", options[name], most=MOST)
        except ValueError as error:
            raise UsageError(str(error)) from error
    if options.length_penalty < 0:
        raise UsageError(f"--length_penalty must be at least 0, got {options.length_penalty:g}")
    if given.get("seed") is not None and not options.draws:
        raise UsageError(
            "--seed is of draws, and without --draws there are none: leave it out, or draw"
        )
    for name in ("beams", "length_penalty"):
        if options.draws and given.get(name) is not None:
            raise UsageError(
                f"--{name} is of the search, and with --draws there is none: leave out one"
            )
    if options.file == STANDARD_INPUT and getattr(sys.stdin, "buffer", None) is None:
        raise UsageError("FILE is -, but standard input is closed")
    return options


def _output(options: Namespace) -> Path | None:
    """The file that is written, which is not the text; None for standard output.

    Raises:
        UsageError: It is the text.
    """
    if options.output is None:
        return None
    read: dict[str, Path | int] = {}
    if options.file != STANDARD_INPUT:
        read[options.file] = Path(options.file).expanduser()
    else:
        with suppress(OSError):  # it may be no file
            read["standard input"] = sys.stdin.fileno()
    require_not_read("--output", [Path(options.output)], read)
    return output_file(options)


def _longest(run: Run, back: bool) -> int:
    """The most numbers of a sentence that is to be translated.

    Raises:
        ValueError: The run has no pair that translates.
    """
    model, guide = run.model, run.guide
    shape, words = (getattr(model, name, None) for name in ("data_shape", "words"))
    of_sentences = isinstance(words, int) and isinstance(shape, tuple) and len(shape) == 1
    method = getattr(model, "decode", None) if back else getattr(guide, "encode", None)
    if not of_sentences or not callable(method):
        kinds = (getattr(part, "__name__", type(part).__name__) for part in (model, guide))
        raise ValueError(
            f"{run.path} holds {' and '.join(kinds)}, which do not translate: needed is a pair whose rows and "
            "latents are sentences, such as LatentTranslation and Translator"
        )
    assert isinstance(shape, tuple)
    latent = getattr(model, "latent_length", None)
    return int(latent if back and isinstance(latent, int) else shape[0])


def _chunks(source: TextSource, num: int) -> Iterator[list[Tensor | None]]:
    """Rows that are translated together: few at first, and one at a time if somebody types them."""
    rows, most = source.rows(), max(1, min(_LINES, _TRANSLATIONS // num))
    size, growth = (1, 1) if source.is_typed else (min(_FIRST, most), 2)
    while chunk := [*islice(rows, size)]:
        yield chunk
        size = min(growth * size, most)


def _translated(
    run: Run, words: Vocabulary, rows: list[Tensor | None], before: int, options: Namespace
) -> Iterator[str]:
    """The lines that are printed of some rows, of which so many came before."""
    given = [row for row in rows if row is not None]
    found = iter(_of_rows(run, words, given, options) if given else ())
    numbered = options.scores or options.num > 1
    for number, row in enumerate(rows, before + 1):
        for *scores, text in [("", "", "")] if row is None else next(found):
            columns = [str(number)] if numbered else []
            columns += scores if options.scores else []
            yield "\t".join([*columns, as_line(text)])


def _of_rows(
    run: Run, words: Vocabulary, given: list[Tensor], options: Namespace
) -> Iterator[list[tuple[str, str, str]]]:
    """log p, log p per token and text of the translations of each row, the best first.

    Raises:
        ValueError: A log-probability is NaN.
    """
    search: dict[str, Any] = {name: options[name] for name in ("beams", "length_penalty")}
    found: Translations
    try:
        found = translate_rows(
            run.model,
            run.guide,
            pad_sequence(given, batch_first=True, padding_value=PAD),
            back=options.back,
            num=options.num,
            draws=options.draws,
            progress=False,
            **search,
        )
    except PairError as error:  # finite weights that overflow
        raise ValueError(f"{run.path}: {error}") from error
    for rows, log_p, per_token in zip(
        found.rows, found.log_probs, found.log_probs_per_word, strict=True
    ):
        there = log_p > -torch.inf  # short rows have few
        numbers = [[f"{each:.4f}" for each in of[there].tolist()] for of in (log_p, per_token)]
        yield [*zip(*numbers, words.sentences(rows[there]), strict=True)]


@contextmanager
def _writing(output: Path | None, overwrite: bool) -> Iterator[Callable[[Iterable[str]], None]]:
    """Gives what writes lines to the file or to standard output; it is said where they are if it fails."""
    if output is None:
        yield show_lines
        return
    written = 0

    def write(lines: Iterable[str]) -> None:
        nonlocal written
        texts = [*lines]
        add("".join(f"{line}\n" for line in texts).encode())
        written += len(texts)

    try:
        with growing(output, overwrite=overwrite) as add:
            yield write
    except BaseException:
        if written:
            part = output.with_name(output.name + PART)
            say(
                f"{counted(written, 'line')} that had been found {'is' if written == 1 else 'are'} in {part}"
            )
        raise
