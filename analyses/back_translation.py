"""Can one learn to translate without a single pair of sentences? The foreign sentence as a latent variable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from back_translation_finite import finite
from progress import Table, require_list, start
from sacrebleu import BLEU, CHRF
from translation_baselines import Translate, copied, identical_words, word_by_word
from translation_bounds import Bounds
from translation_pairs import Sizes, Training, language_model, trained
from translation_texts import INVENTED, Texts

from ppl_vae import diagnose, evaluate
from ppl_vae.data import invented_log_prob
from ppl_vae.runtime import lengths_of, replacing, require_count, require_samples
from ppl_vae.stats import Estimate
from ppl_vae.tasks import translate

METRICS = (BLEU(), CHRF())

TRANSLATIONS = (
    *("trained on", "BLEU to English", "chrF to English", "BLEU from English", "chrF from English"),
    "copied",
)
PROBABILITIES = (
    *("trained on", "log p(x)", "ESS", "ELBO", "rate", "-log p(z)", "distortion", "worth of z"),
    *("words of z", "collapse"),
)

NATS = ("log_p", "elbo", "rate", "code", "distortion", "worth")
"""The numbers of `Scores.found` that are in nats per token."""


@dataclass(frozen=True)
class Scores:
    """What a way to translate reaches on the test sentences.

    Attributes:
        bleu: Of translations into x, English, and into z.
        chrf: Likewise.
        found: Of a pair, in nats per token: bound on log p(x), ELBO, rate, -log p(z) of the guide's z,
            distortion, and by how much that rises with the z of another row; and its ESS, the share of the
            words of z that are copied from x, beyond chance, and how many words z has. Empty without a pair.
        collapse: The cause of a collapse of z; "none" if it has not collapsed.
    """

    bleu: tuple[float, float]
    chrf: tuple[float, float]
    found: Mapping[str, float] = field(default_factory=dict)
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
    plurals: bool = False,
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
        plurals: Whether plurals are endings there, from difficulty 3/8 on.
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
        ValueError: There are not so many pairs, or the texts have not so many sentences; or an option is out of
            its range, or a list has something twice.
    """
    require_list("--pairs", pairs, 0, may_be_empty=True)
    require_list("--seeds", seeds)
    require_list("--bounds", bounds, 1, may_be_empty=True)
    require_count("--more_epochs", more_epochs, 0)
    require_count("--bound_rows", bound_rows)
    require_count("--beams", beams)
    require_samples("--num_samples", num_samples)
    sizes.require()
    for count in pairs:
        if count > size:
            raise ValueError(
                f"--pairs has {count}, and there are {size} sentences of each language: lower it, or raise "
                "--size"
            )
    texts = Texts.of(data, size, vocabulary, test_rows, difficulty, plurals=plurals)
    ways = [Training(by="denoising")]
    for count in pairs:
        ways += [Training(count), *([Training(count, "pairs")] if count else [])]
        if draws and not count:
            ways.append(Training(greedy=False))
        if more_epochs and not count:
            ways += [
                Training(then=then, epochs=more_epochs) for then in ("back-translation", "ELBO")
            ]
    table = Table(TRANSLATIONS, steps=(1 + (1 + len(bounds)) * len(ways)) * len(seeds))
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
    exact = [["language model of x, exactly", _mean(nats, ".3f"), *[""] * 8]]
    if data == INVENTED:
        known = float(invented_log_prob(texts.test[0][:bound_rows]).sum() / lengths.sum())
        exact.append(["the grammar itself, exactly", f"{known:.3f}", *[""] * 8])
    signatures = [str(metric.get_signature()) for metric in METRICS]
    how = (beams, num_samples, bound_rows, texts.test, signatures, PROBABILITIES)
    measured = hashlib.sha256(repr(how).encode()).hexdigest()[:10]
    every: dict[str, list[Scores]] = {}
    for way in ways:
        scores = every[str(way)] = []
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
    print(_of_translations(texts, seeds, beams))
    second = Table(PROBABILITIES, 0)
    second.head()
    for cells in exact:
        second.row(cells)
    for name, scores in every.items():
        second.row(_nats(name, scores))
    print(_of_probabilities(sizes, num_samples, min(bound_rows, len(texts.test[0]))))
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
    diagnosis = diagnose(model, guide, some, seed=seed)
    use = diagnosis.of_sentences
    assert use is not None
    sums = {
        "log_p": float(found.log_likelihood.values.double().sum()),
        "elbo": float(found.elbo.values.double().sum()),
        "rate": float(found.rate.values.double().sum()),
        "distortion": float(found.distortion.values.double().sum()),
        "code": -use.log_prior.mean * use.words.mean * len(some),
        "worth": use.worth.mean * len(some),
    }
    numbers = {name: total / tokens for name, total in sums.items()}
    numbers |= {
        "ess": float(found.ess.double().mean()),
        "copied": use.surplus,
        "words": use.words.mean,
    }
    best = [texts.words.sentences(translated.rows[:, 0]) for translated in (into_x, into_z)]
    return Scores.of(best[0], best[1], texts, found=numbers, collapse=diagnosis.cause)


def _cells(name: str, scores: Sequence[Scores]) -> list[str]:
    """What the table of translations says of a line."""
    cells = [name]
    for way in range(2):
        cells += [_mean([of.bleu[way] for of in scores], ".1f")]
        cells += [_mean([of.chrf[way] for of in scores], ".1f")]
    copies = [100 * of.found["copied"] for of in scores if of.found]
    return [*cells, f"{_mean(copies, '.0f')} %" if copies else ""]


def _nats(name: str, scores: Sequence[Scores]) -> list[str]:
    """What the table of probabilities says of a line."""
    means = {key: _mean([of.found[key] for of in scores], ".3f") for key in NATS}
    for key in ("ess", "words"):
        means[key] = _mean([of.found[key] for of in scores], ".1f")
    order = ("log_p", "ess", *NATS[1:], "words")
    collapses = ", ".join(sorted({of.collapse for of in scores}))
    return [name, *(means[key] for key in order), collapses]


def _mean(values: Sequence[float], form: str) -> str:
    """The mean, with its standard error over seeds if there are several."""
    if len(values) == 1:
        return format(values[0], f"z{form}")  # no -0
    return Estimate(torch.tensor(values, dtype=torch.float64)).numbers(form)


def _of_translations(texts: Texts, seeds: Sequence[int], beams: int) -> str:
    each = ", means and standard errors over seeds of the training" if len(seeds) > 1 else ""
    return (
        f"\n{len(texts.x)} English sentences x and as many foreign ones z of {texts.name}, none of which is "
        f"paired with another but for the pairs that are named; {len(texts.test[0])} test sentences, "
        f"translations by {beams} beams{each}. BLEU: {METRICS[0].get_signature()}; chrF: "
        f"{METRICS[1].get_signature()}; copied: the share of the words of z that are words of x, beyond "
        "chance.\n"
    )


def _of_probabilities(sizes: Sizes, num_samples: int, rows: int) -> str:
    return (
        f"\nNats per token of {rows} test sentences, a token being a piece of a word, or the end. log p(x): a "
        f"lower bound by {num_samples} draws of z, if it is not said to be exact; ESS: how many draws of equal "
        "weight would say as much. -log p(z): of the guide's z; the rate is this less the entropy of q. Worth "
        f"of z: what x loses with the z of another row. {sizes}"
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
