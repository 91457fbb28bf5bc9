"""How much text does it take to read a secret script? EM, amortized guides and back-translation, by length."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

import torch
from kept_scores import Scores
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from progress import Table, chosen_rows, require_list, start
from secret_methods import Methods, Score
from secret_texts import Language, Secret

from ppl_vae.runtime import replacing, require_count, require_output
from ppl_vae.stats import Estimate

SOLVED = 0.9
"""The share of the letters from which on a text counts as read."""

COLORS = {
    "by frequency": "#6E6E6E",
    "EM, one start": "#56B4E9",
    "EM": "#0072B2",
    "guide, one start": "#E69F00",
    "guide": "#D55E00",
    "back-translation": "#009E73",
    "back-translation after EM": "#CC79A7",
}

Found = Mapping[tuple[str, int], Sequence[Score]]
"""The scores of the keys, by method and length."""


def main(
    plain: Path | None = None,
    secret: Path | None = None,
    lengths: tuple[int, ...] = (100, 200, 400, 800, 1600, 3200),
    num_keys: int = 20,
    restarts: int = 20,
    guide_lengths: tuple[int, ...] = (400, 1600),
    guide_keys: int = 20,
    guide_restarts: int = 5,
    max_steps: int = 800,
    hidden: int = 32,
    rows: tuple[str, ...] | None = None,
    seed: int = 0,
    runs: Path = Path("decipherment"),
    output: Path = Path("decipherment.png"),
    overwrite: bool = False,
) -> None:
    """Shows how much text it takes to read a script in which each letter of a known language has a symbol.

    The plaintext is the latent variable: its bigrams are known, and the key is learned from the ciphertext
    alone. Texts of each length are tried with keys at random. What is found is kept, key by key: a run that was
    stopped goes on, and several at a time may find rows of their own for one folder.

    Args:
        plain: A file of the language, UTF-8, of which the bigrams are counted; None for an invented language.
        secret: A file of which the secret texts are pieces; the second half of `plain` if None.
        lengths: Letters of a text.
        num_keys: Keys, each with a text of its own.
        restarts: Starts of EM.
        guide_lengths: Those of the lengths at which guides are trained, too, which takes longer.
        guide_keys: With so many of the keys.
        guide_restarts: Starts of the guide, of which log p(x) chooses, as of those of EM.
        max_steps: Steps of a training with a guide.
        hidden: Width of the guide's GRU.
        rows: The methods; all if None.
        seed: Seed of all random numbers.
        runs: Folder that keeps the scores.
        output: Where to save the picture.
        overwrite: Whether a picture that is there is replaced.

    Raises:
        ValueError: A file is too short, or no text; or an option is out of its range, or a list has something
            twice.
    """
    require_output(output, overwrite=overwrite)
    require_list("--lengths", lengths)
    require_list("--guide_lengths", guide_lengths, may_be_empty=True)
    counts = {"num_keys": num_keys, "restarts": restarts, "guide_keys": guide_keys}
    counts |= {"guide_restarts": guide_restarts, "max_steps": max_steps, "hidden": hidden}
    for option, given in counts.items():
        require_count(f"--{option}", given)
    ways = Methods(restarts, guide_restarts, max_steps, hidden).ways()
    chosen = chosen_rows(rows, ways)
    if all(ways[name].trains_guide for name in chosen) and not {*guide_lengths} & {*lengths}:
        raise ValueError(
            f"--rows has {chosen}, which are tried at --guide_lengths, and --lengths has none of these: add "
            "one to it"
        )
    if secret is not None and plain is None:
        raise ValueError(
            "--secret is read by the bigrams of its language: give a text of that, --plain FILE"
        )
    language = Language.invented(seed) if plain is None else Language.of_file(plain, secret)
    for length in lengths:
        language.require_texts(length)
    scores = Scores(
        runs / "scores.csv",
        {name: f"{way.made_of}, {language.digest}" for name, way in ways.items()},
        columns=("method", "letters", "seed", "start"),
        numbers=[field.name for field in fields(Score)],
    )
    keys = {
        (name, length): range(seed, seed + (guide_keys if ways[name].trains_guide else num_keys))
        for length in lengths
        for name in chosen
        if not ways[name].trains_guide or length in guide_lengths
    }

    def starts(name: str, length: int, key: int) -> list[tuple[str, int, int, int]]:
        way = ways[name]
        return [(way.kept_as or name, length, key, i) for i in range(way.starts)]

    every = {each for of, seeds in keys.items() for key in seeds for each in starts(*of, key)}
    missing = sum(scores.find(*each) is None for each in every)
    columns = ["letters", "method", "keys", "read right, %", "key right, %", "solved"]
    columns += ["log p(x)", "less that of the true key", "seconds"]
    table = Table(columns, steps=missing)
    print(
        f"{language.letters} letters; the entropy of a letter given the one before is "
        f"{language.entropy:.3f} nats, log {language.letters} = {math.log(language.letters):.3f}.\n"
    )
    table.head()
    found: dict[tuple[str, int], list[Score]] = {}
    for (name, length), seeds in keys.items():
        found[name, length] = []
        for key in seeds:
            tried = []
            for one in starts(name, length, key):
                numbers = scores.find(*one)
                if numbers is None:
                    text = Secret.of(language, length, key)
                    numbers = [*astuple(ways[name].score(text, one[-1]))]
                    scores.add(*one, numbers=numbers)
                    table.step(f"{length} letters, {name}, key {key}, start {one[-1]}")
                tried.append(Score(*numbers))
            found[name, length].append(Score.best(tried))
        table.row([str(length), name, *cells(found[name, length])])
    with replacing(output, overwrite=overwrite) as file:
        picture(found, language.letters).savefig(file)
    print(
        "\nPercent of the letters of a text, nats per letter; mean ± standard error over keys. Read right: by "
        "the likeliest plaintext under the key that was found. Key right: if each symbol stands for one "
        f"letter, the one most often behind it. Solved: texts of which {100 * SOLVED:.0f} % are read right. "
        "Under the true key all is read right; log p(x) may be above that, as a key that is found may have any "
        f"probabilities. The picture is {output}."
    )


def cells(scores: Sequence[Score]) -> list[str]:
    """What a row of the table says of some texts."""
    more = [one.log_p - one.true_log_p for one in scores]
    known = all(math.isfinite(each) and each > -100 for each in more)
    return [
        str(len(scores)),
        over_keys([100 * one.read for one in scores]).numbers(".0f"),
        over_keys([100 * one.key for one in scores]).numbers(".0f"),
        f"{sum(one.read >= SOLVED for one in scores)} of {len(scores)}",
        over_keys([one.log_p for one in scores]).numbers(".3f") if known else "-",
        over_keys(more).numbers(".3f") if known else "-",
        f"{sum(one.seconds for one in scores) / len(scores):.1f}",
    ]


def over_keys(numbers: Sequence[float]) -> Estimate:
    """Mean and standard error over keys."""
    return Estimate(torch.tensor(numbers, dtype=torch.float64), unit="")


def picture(found: Found, letters: int) -> Figure:
    """Percent of a text that is read right against its length, a line for each method, named at its end."""
    figure = Figure(figsize=(8, 4.8), dpi=110, layout="constrained")
    axes = figure.subplots()
    names = [*dict.fromkeys(name for name, _ in found)]
    every = sorted({length for _, length in found})
    ends = {f"chance, 1 of {letters}": (every[-1], 100 / letters, "0.6")}
    axes.axhline(100 / letters, color="0.6", linewidth=0.8, linestyle="--", zorder=0)
    for i, name in enumerate(names):
        lengths = sorted(length for of, length in found if of == name)
        each = [over_keys([100 * one.read for one in found[name, length]]) for length in lengths]
        errors = [0.0 if len(of.values) < 2 else of.standard_error for of in each]
        # Side by side, so that one bar does not hide another.
        at = [length * 1.015 ** (i - (len(names) - 1) / 2) for length in lengths]
        style: dict[str, Any] = {"color": COLORS[name], "capsize": 3, "markersize": 5}
        axes.errorbar(at, [of.mean for of in each], yerr=errors, fmt="o-", linewidth=2, **style)
        ends[name] = (at[-1], each[-1].mean, COLORS[name])
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(every, [f"{length:,}" for length in every])
    axes.set_ylim(0, 102)
    axes.set_xlabel("letters of the secret text", fontsize=14)
    axes.set_ylabel("letters read right, %", fontsize=14)
    axes.tick_params(labelsize=13)
    axes.spines[["top", "right"]].set_visible(False)
    _name_ends(axes, ends)
    return figure


def _name_ends(axes: Axes, ends: Mapping[str, tuple[float, float, str]], apart: float = 6) -> None:
    """Writes names to the right of the axes, as near to the ends of their lines as there is room."""
    names = sorted(ends, key=lambda name: ends[name][1])
    heights: list[float] = []
    for name in names:
        heights.append(max([ends[name][1], *(height + apart for height in heights[-1:])]))
    top = axes.get_ylim()[1]
    for i in reversed(range(len(names))):
        heights[i] = min(heights[i], top)
        top = heights[i] - apart
    for name, height in zip(names, heights, strict=True):
        x, y, color = ends[name]
        axes.annotate(
            name,
            (x, y),
            (1.04, height),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            fontsize=13,
            color=color,
            arrowprops={
                **{"arrowstyle": "-", "color": color, "linewidth": 0.6},
                **{"relpos": (0, 0.5), "shrinkA": 0},
            },
        )


if __name__ == "__main__":
    start(
        main,
        quick={
            **{"lengths": (100,), "num_keys": 2, "restarts": 2},
            **{
                "guide_lengths": (100,),
                "guide_keys": 1,
                "guide_restarts": 2,
                "max_steps": 2,
                "hidden": 4,
            },
            **{"runs": "decipherment_quick", "output": "decipherment_quick.png"},
        },
    )
