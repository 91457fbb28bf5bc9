"""Can one learn to translate without a single pair of sentences? The foreign sentence as a latent variable."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from back_translation_finite import finite
from progress import Table, start
from sacrebleu import BLEU, CHRF
from translation_baselines import Translate, copied, identical_words, word_by_word
from translation_bounds import Bounds
from translation_pairs import Sizes, Training, language_model, trained
from translation_texts import INVENTED, Texts

from ppl_vae import diagnose, evaluate
from ppl_vae.data import invented_log_prob
from ppl_vae.runtime import lengths_of, replacing
from ppl_vae.stats import Estimate
from ppl_vae.tasks import translate

METRICS = (BLEU(), CHRF())

COLUMNS = (
    *("learned from", "BLEU into x", "chrF into x", "BLEU into z", "chrF into z"),
    *("log p(x)", "ELBO", "rate", "distortion", "worth of z", "copied", "collapse"),
)


@dataclass(frozen=True)
class Scores:
    """What a way to translate reaches on the test sentences.

    Attributes:
        bleu: Of translations into x, and into z.
        chrf: Likewise.
        nats: Bound on log p(x), ELBO, rate, distortion, in nats per token, and by how much the distortion rises
            with the z of another row; None without a model.
        copied: Share of the words of z that are words of its x, beyond chance.
        collapse: The cause of a collapse of z; "none" if it has not collapsed.
    """

    bleu: tuple[float, float]
    chrf: tuple[float, float]
    nats: Sequence[float] | None = None
    copied: float = math.nan
    collapse: str = ""

    @classmethod
    def of(cls, into_x: list[str], into_z: list[str], texts: Texts, **others: Any) -> Scores:
        """The scores of translations of all test sentences."""
        pairs = [(into_x, [texts.test[0]]), (into_z, [texts.test[1]])]
        bleu, chrf = (
            (metric.corpus_score(*pairs[0]).score, metric.corpus_score(*pairs[1]).score)
            for metric in METRICS
        )
        return cls(bleu, chrf, **others)


def translating(
    data: str = INVENTED,
    pairs: tuple[int, ...] = (0, 100, 1000),
    size: int = 2000,
    vocabulary: int = 500,
    difficulty: float = 1.0,
    seeds: tuple[int, ...] = (0,),
    sizes: Sizes = Sizes(width=64),  # noqa: B008 (frozen)
    draws: bool = False,
    more_epochs: int = 0,
    bounds: tuple[int, ...] = (),
    test_rows: int | None = None,
    num_samples: int = 50,
    bound_rows: int = 200,
    beams: int = 5,
    runs: Path = Path("translations"),
) -> None:
    """BLEU and chrF of translations in both directions, and nats per token, beside simpler ways.

    x is English. The foreign sentence z is a latent: `LatentTranslation` and `Translator`, trained by denoising
    and then back-translation on sentences that are not paired, with some pairs or none.

    Args:
        data: "invented" for sentences of a small grammar and their disguise, a folder with train.en, train.de
            and so on, as Multi30k has them, or "disguised:FOLDER" for its English and a disguise of it.
        pairs: Numbers of pairs that are known beside the sentences that are not paired.
        size: Sentences of each language.
        vocabulary: Size of the vocabulary.
        difficulty: Of the disguise, from 0 to 1.
        seeds: Of the trainings: scores are means, with standard errors if there are several.
        sizes: Network and training.
        draws: Whether back-translation without pairs is also tried with draws of q(z | x), as its formula has
            them, in place of the likeliest words: one more line.
        more_epochs: Epochs that go on without pairs, by back-translation or by the ELBO: two more lines.
        bounds: Numbers of draws for a second table: how the bound on log p(x) rises with them, beside the
            language model of x.
        test_rows: Test sentences; all if None.
        num_samples: Draws of z for the bound on log p(x).
        bound_rows: Test sentences of the bound.
        beams: Beginnings that are kept in the search for a translation.
        runs: Folder that keeps the trained pairs; an interrupted training continues.

    Raises:
        ValueError: There are not so many pairs, or the texts have not so many sentences.
    """
    for count in pairs:
        if count < 0:
            raise ValueError(f"--pairs has {count}, which is no number of pairs")
        if count > size:
            raise ValueError(
                f"--pairs has {count}, and there are {size} sentences of each language: lower it, or raise "
                "--size"
            )
    texts = Texts.of(data, size, vocabulary, test_rows, difficulty)
    ways = [Training(by="denoising")]
    for count in pairs:
        ways += [Training(count), *([Training(count, "pairs")] if count else [])]
        if draws and not count:
            ways.append(Training(greedy=False))
        if more_epochs and not count:
            ways += [
                Training(then=then, epochs=more_epochs) for then in ("back-translation", "ELBO")
            ]
    table = Table(COLUMNS, steps=(1 + (1 + len(bounds)) * len(ways)) * len(seeds))
    table.head()
    for name, into_x, into_z in _simple_ways(texts, pairs):
        found = Scores.of(into_x(texts.test[1]), into_z(texts.test[0]), texts)
        table.row(_cells(name, [found]))
    rows = texts.rows(texts.test[0])[:bound_rows]
    lengths = lengths_of(rows)
    nats, of_language = [], []
    for seed in seeds:
        model = language_model(runs, texts, "x", sizes, seed)
        of_language.append(model.log_evidence(rows).detach().double())
        nats.append(float(of_language[-1].sum() / lengths.sum()))
        table.step(f"language model, seed {seed}")
    table.row(["language model of x", *[""] * 4, _mean(nats, ".3f"), *[""] * 6])
    if data == INVENTED:
        exact = float(invented_log_prob(texts.test[0][:bound_rows]).sum() / lengths.sum())
        table.row(["the grammar itself", *[""] * 4, f"{exact:.3f}", *[""] * 6])
    signatures = [str(metric.get_signature()) for metric in METRICS]
    how = (beams, num_samples, bound_rows, texts.test, signatures)
    measured = hashlib.sha256(repr(how).encode()).hexdigest()[:10]
    for way in ways:
        scores = []
        for seed in seeds:
            folder = sizes.folder(runs, way.name, texts, seed)
            file = folder.parent / f"{folder.name},{measured}.json"
            if not file.exists():
                pair = trained(runs, texts, way, sizes, seed)
                found = _measured(*pair, texts, num_samples, bound_rows, beams, seed)
                with replacing(file) as temporary:
                    Path(temporary).write_text(json.dumps(vars(found)))
            scores.append(Scores(**json.loads(file.read_text())))
            table.step(f"{way}, seed {seed}")
        table.row(_cells(str(way), scores))
    print(_explained(texts, sizes, seeds, num_samples, bound_rows, beams))
    if bounds:
        Bounds(runs, texts, sizes, seeds, rows, of_language).show(ways, bounds, table)


def _simple_ways(texts: Texts, pairs: Sequence[int]) -> list[tuple[str, Translate, Translate]]:
    """Ways to translate without a network: a name, and how sentences become x and z."""
    found: list[tuple[str, Translate, Translate]] = [
        ("nothing: copies", copied, copied),
        ("nothing: identical words", identical_words(texts.x), identical_words(texts.z)),
    ]
    for count in pairs:
        if count:
            x, z = (side[:count] for side in texts.pairs)
            found.append((f"{count} pairs: word by word", word_by_word(z, x), word_by_word(x, z)))
    return found


def _measured(
    model: Any, guide: Any, texts: Texts, num_samples: int, bound_rows: int, beams: int, seed: int
) -> Scores:
    x, z = (texts.rows(side) for side in texts.test)
    into_x = translate(model, guide, z, back=True, beams=beams)
    into_z = translate(model, guide, x, beams=beams)
    some = x[:bound_rows]
    found = evaluate(model, guide, some, num_samples=num_samples, seed=seed)
    tokens = float(lengths_of(some).sum())
    each = (found.log_likelihood, found.elbo, found.rate, found.distortion)
    nats = [float(of.values.double().sum()) / tokens for of in each]
    diagnosis = diagnose(model, guide, some, seed=seed)
    use = diagnosis.of_sentences
    assert use is not None
    best = [texts.words.sentences(found.rows[:, 0]) for found in (into_x, into_z)]
    nats.append(use.worth * len(some) / tokens)
    told: dict[str, Any] = {"copied": use.surplus, "collapse": diagnosis.cause}
    return Scores.of(best[0], best[1], texts, nats=nats, **told)


def _cells(name: str, scores: Sequence[Scores]) -> list[str]:
    cells = [name]
    for way in range(2):
        cells += [_mean([of.bleu[way] for of in scores], ".1f")]
        cells += [_mean([of.chrf[way] for of in scores], ".1f")]
    nats = [of.nats for of in scores if of.nats is not None]
    if not nats:
        return [*cells, *[""] * 7]
    cells += [_mean([of[i] for of in nats], ".3f") for i in range(5)]
    cells.append(_mean([100 * of.copied for of in scores], ".0f") + " %")
    return [*cells, ", ".join(sorted({of.collapse for of in scores}))]


def _mean(values: Sequence[float], form: str) -> str:
    """The mean, with its standard error over seeds if there are several."""
    if len(values) == 1:
        return format(values[0], f"z{form}")  # no -0
    return Estimate(torch.tensor(values, dtype=torch.float64)).numbers(form)


def _explained(
    texts: Texts, sizes: Sizes, seeds: Sequence[int], num_samples: int, rows: int, beams: int
) -> str:
    each = "Means and standard errors over seeds. " if len(seeds) > 1 else ""
    return (
        f"\n{len(texts.x)} English sentences x and as many foreign ones z of {texts.name}, none of which is "
        f"paired with another but for the pairs that are named; {len(texts.words)} pieces of words; "
        f"{len(texts.test[0])} test sentences, translations by {beams} beams. {each}BLEU: "
        f"{METRICS[0].get_signature()}; chrF: {METRICS[1].get_signature()}. log p(x) is a lower bound by "
        f"{num_samples} draws of z, of {min(rows, len(texts.test[0]))} sentences, in nats per token, a "
        f"piece of a word; worth of z: what x loses with the z of another row. {sizes}"
    )


if __name__ == "__main__":
    start(
        {"translating": translating, "finite": finite},
        quick={
            "translating": {
                **{"pairs": (0, 20), "size": 60, "vocabulary": 280, "test_rows": 10},
                **{"sizes.width": 8, "sizes.heads": 2, "sizes.layers": 1, "sizes.epochs": 1},
                **{"sizes.pair_epochs": 1, "sizes.language_epochs": 1, "sizes.denoising_epochs": 1},
                **{
                    "draws": "true",
                    "more_epochs": 1,
                    "bounds": (1, 3),
                    "num_samples": 3,
                    "bound_rows": 5,
                    "beams": 2,
                    "runs": "translations_quick",
                },
            },
            "finite": {"sentences": 5, "rows": 200, "max_epochs": 20, "num_seeds": 2},
        },
    )
