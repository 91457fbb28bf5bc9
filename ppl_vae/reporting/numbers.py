"""The numbers of a run, each with a sentence."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ppl_vae.pairs import (
    AT_POINT,
    DISTORTION,
    ELBO_MEASURE,
    HELD_OUT,
    MEASURES,
    Measure,
    measure_in,
    measure_of_result,
)
from ppl_vae.reporting.markup import Markup, explained, table
from ppl_vae.stats import khat_limit

Row = tuple[str, str, str]
"""A quantity: its name, its value, and a sentence."""


def limited(diagnosis: Mapping[str, Any]) -> bool:
    """Whether so few rows were diagnosed that the mutual information is a bound; see `Diagnosis.saturated`."""
    warned = diagnosis.get("warnings")
    return isinstance(warned, list) and any("limit log n" in str(text) for text in warned)


def of_evaluation(found: Mapping[str, Any], beta: float = 1.0) -> Iterator[Row]:
    """The numbers of evaluation.json.

    Args:
        found: Its content.
        beta: The weight of the KL that the pair was trained with.
    """
    rows, samples, of = (found.get(name) for name in ("num_rows", "num_samples", "rows"))
    held_out = isinstance(of, Mapping) and of.get("split") == "test"
    lost = _mean(found, "log_likelihood") - _mean(found, "elbo")
    measure = measure_of_result(found)
    points = measure is AT_POINT
    of_rows = "held-out" if held_out else "the evaluated"
    if measure is not DISTORTION:
        yield from _estimate(
            found,
            measure.name,
            f"{measure.text}{measure.at}",
            f"What stands where the ELBO would, of {of_rows} rows: no bound on log p(x), as a point has no "
            "density."
            if points
            else f"A lower bound on log p(x), of {of_rows} rows: −rate − distortion. Higher is better.",
        )
    error = found.get("log_likelihood_error")
    exact = isinstance(error, Mapping) and error.get("largest") == 0
    exact = exact and not _count(found.get("unreliable"))  # equal draws have no error, either
    way = "exactly" if exact else f"by {samples} importance samples of each row"
    certain = found.get("certain") is True  # nothing was sampled
    bound = measure is ELBO_MEASURE
    bad = _count(found.get("unreliable")) if bound and not certain else None
    doubt = f" It is not to be trusted on {bad} of {rows} rows." if bad else ""
    guide = f" The ELBO is {lost:.2f} nats lower: so much the guide loses." if lost >= 0 else ""
    if guide and beta != 1:
        guide = (
            f"{guide} It was trained with beta = {beta:.4g}, for which the best guide is not the posterior; "
            "with beta = 1 it is."
        )
    yield from _estimate(
        found,
        "log_likelihood",
        "log p(x)",
        f"What the model is worth, {way}.{guide}{doubt}",
    )
    yield from _estimate(
        found,
        measure.rate,
        _called(measure.rate_text),
        "The penalty on the code, or its density."
        if points
        else "What it costs to tell z of a row to someone who knows the prior: KL(q(z | x) || p(z)).",
    )
    yield from _estimate(
        found,
        "distortion",
        "distortion",
        "What it then costs to tell the row to someone who knows z: −E log p(x | z).",
    )
    tokens = found.get("counted") == "token"
    yield from _estimate(
        found,
        "bits_per_dim",
        "bits per token" if tokens else "bits per dimension",
        f"−log p(x) in bits, by the {'words of a sentence and its end' if tokens else 'numbers of a row'}: to "
        "compare with models of the same data. Lower is better.",
        unit="bits",
    )
    if certain:
        yield (
            "log p(x)",
            "at least the ELBO",
            "The guide puts all of its mass on one value of z: the ELBO is exact, and log p(x) is not known.",
        )
    if not bound:
        yield (
            "log p(x)",
            "not defined",
            "The guide gives a point, which has no density: there is no bound on log p(x)."
            if points
            else "The model has no density of z: what it has is the distortion.",
        )
    if isinstance(samples, int) and not exact and not certain and bound:
        yield from _spread(
            found,
            "ess",
            "effective samples",
            f"What the {samples} weighted samples of a row are worth, median; and the row with the fewest.",
            "least",
            ".0f",
        )
        limit = khat_limit(samples) if samples > 1 else math.nan
        yield from _spread(
            found,
            "khat",
            "Pareto k-hat",
            f"Whether the samples of a row suffice for its log p(x): up to {limit:.2f} they do. Median, and "
            "the worst row.",
            "largest",
            ".2f",
        )
    if bad is not None:
        yield (
            "unreliable rows",
            f"{bad} of {rows}",
            "Rows whose log p(x) is not to be trusted.",
        )
    if exact:
        yield (
            "ways to log p(x)",
            "exact",
            "It is a sum over all values of the latents, or follows from the exact posterior, without samples.",
        )
    elif isinstance(found.get("method"), Mapping) and not certain and bound:
        ways = ", ".join(f"{name} {count}" for name, count in found["method"].items())
        yield (
            "ways to log p(x)",
            ways,
            "How many rows got their log p(x) by samples of the guide, and how many by better proposals.",
        )
    if isinstance(rows, int):
        name = f"{of.get('name')}: " if isinstance(of, Mapping) else ""
        told = "none of these rows was trained on. " if held_out else ""
        yield (
            "held-out rows" if held_out else "rows",
            str(rows),
            f"{name}{told}Values are means over them, ± one standard error.",
        )


def _count(found: object) -> int | None:
    """How often a flag is set, of the summary of a result; None if it does not say so."""
    count = found.get("count") if isinstance(found, Mapping) else None
    return count if isinstance(count, int) else None


def of_diagnosis(found: Mapping[str, Any]) -> Iterator[Row]:
    """The numbers of diagnosis.json."""
    names, active = found.get("names"), found.get("active_units")
    codes = found.get("of_codes")
    if isinstance(codes, list) and codes:
        yield from _of_codes(codes)
    elif isinstance(names, list) and isinstance(active, int):
        yield (
            "active units",
            f"{active} of {len(names)}",
            "Latent dimensions whose posterior means differ from row to row.",
        )
    few = limited(found)
    yield from _estimate(
        found,
        "mutual_information",
        "mutual information",
        "What z tells of x, from the rows that were diagnosed: at most the logarithm of their number."
        + (" It is close to that, so it may be more." if few else ""),
        bound="≥" if few else "",
    )
    bounds = found.get("information_bounds")
    if isinstance(bounds, list) and len(bounds) == 2 and all(map(_is_number, bounds)):
        yield (
            "of the population",
            f"{bounds[0]:.2f} to {bounds[1]:.2f} nats",
            "Between which values the mutual information of all such data is.",
        )
    yield from _estimate(
        found,
        "marginal_kl",
        "marginal KL",
        "How far the latents of all rows together are from the prior; with the mutual information it makes the "
        "rate.",
        bound="≤" if few else "",
    )
    if _is_number(found.get("beta")):
        yield (
            "beta",
            f"{found['beta']:.4g}",
            "The weight of the rate in what was trained; 1 is the ELBO.",
        )


def _of_codes(found: Sequence[object]) -> Iterator[Row]:
    """Of a quantizer: each codebook."""
    for use in (each for each in found if isinstance(each, Mapping)):
        of = f", {use.get('name')}" if len(found) > 1 else ""
        numbers = ("used", "values", "perplexity", "rate", "entropy")
        if not all(_is_number(use.get(name)) for name in numbers):
            continue
        used, values, perplexity, rate, entropy = (use[name] for name in numbers)
        yield (
            f"codes used{of}",
            f"{used:,.0f} of {values:,.0f}",
            "Codes of the quantizer that these rows use.",
        )
        yield (
            f"perplexity{of}",
            f"{perplexity:.1f}",
            "exp(entropy) of their shares: how many codes, used alike, would say as much.",
        )
        yield (
            f"nats per code{of}",
            f"{rate:.3f}",
            f"What a code costs under p(z); under a prior that knows how often each is used, {entropy:.3f}.",
        )


def of_annealed(found: Mapping[str, Any]) -> Iterator[Row]:
    """The numbers of annealed.json."""
    yield from _estimate(
        found,
        "log_likelihood",
        "log p(x), annealed",
        "The same quantity by annealed importance sampling, a check by another way.",
    )


def of_gaps(found: Mapping[str, Any]) -> Iterator[Row]:
    """The numbers of gaps.json."""
    told = {
        "approximation_gap": "What the family of the guide loses: the best q of each row is not the posterior.",
        "amortization_gap": "What the guide's network loses on top: it does not find the best q of each row.",
    }
    of_rows = f" Of {found.get('num_rows')} rows."
    for name, sentence in told.items():
        yield from _estimate(found, name, name.replace("_", " "), sentence + of_rows)


def of_colors(found: Mapping[str, Any]) -> Iterator[Row]:
    """The numbers of colors.json."""
    photos = f"of {found.get('num_rows')} photos"
    told = (
        (
            "bits",
            "color of a photo",
            f"−log2 P(y | x) per pixel of chroma, {photos}: the length of a file.",
        ),
        (
            "information",
            "I(z; y | x)",
            "What the colors say of the segment of a pixel. 0: z has collapsed.",
        ),
    )
    for name, called, sentence in told:
        yield from _estimate(found, name, called, sentence, unit="bits per pixel")
    for name, called in (("psnr_mean", "mean coloring"), ("psnr_mode", "mode coloring")):
        yield from _estimate(
            found, name, called, "Peak signal-to-noise ratio of its red, green and blue.", unit="dB"
        )
    yield from _estimate(
        found,
        "rand_with_colors",
        "adjusted Rand index",
        "How the segments, given gray picture and colors, agree with those beside the photos: 1 fully, 0 by "
        "chance.",
        unit="",
    )


def number_table(rows: Sequence[Row]) -> Markup:
    """Quantities with sentences; empty if there are none."""
    return explained(rows, "Numbers") if rows else Markup("")


def _called(text: str) -> str:
    """A name as it stands on a page."""
    return text.replace("-", "−")


def _of_measures(name: str, text: str) -> dict[str, tuple[str, str]]:
    """Columns of an ELBO, or its rate, and of what other pairs have in their place; of held-out rows, too."""
    found = {}
    for each in MEASURES[:-1]:
        column, called = getattr(each, name), _called(getattr(each, text))
        found[column] = (called, ".2f")
        found[HELD_OUT + column] = (f"{called}, held out", ".2f")
    return found


_EPOCHS = {
    "epoch": ("epoch", ".0f"),
    "iteration": ("iteration", ".0f"),
    **_of_measures("name", "text"),
    "bound": ("bound", ".3f"),
    "log_likelihood": ("log p(x)", ".3f"),
    **_of_measures("rate", "rate_text"),
    "distortion": ("distortion", ".2f"),
    "validation_distortion": ("distortion, held out", ".2f"),
    "active_units": ("active units", ".0f"),
    "codes_used": ("codes used", ".0f"),
    "perplexity": ("perplexity", ".1f"),
    "beta": ("beta", ".3g"),
    "learning_rate": ("learning rate", ".2g"),
    "seconds": ("seconds", ".1f"),
}
"""Columns of metrics.csv that are told, each with its name and the form of its numbers."""


def epoch_table(history: Sequence[Mapping[str, float]]) -> Markup:
    """Some epochs of a training: first ones, the best one, the last one; empty without known numbers."""
    columns = [name for name in _EPOCHS if _is_told(name, history)]
    if not columns:
        return Markup("")
    last = len(history) - 1
    chosen = {0, last // 8, last // 4, last // 2, 3 * last // 4, last}
    best = best_epoch(history)
    chosen |= set() if best is None else {best}
    rows = [
        [
            _cell(history[i], name) + (" (best)" if i == best and not j else "")
            for j, name in enumerate(columns)
        ]
        for i in sorted(chosen)
    ]
    return table([_EPOCHS[name][0] for name in columns], rows, "Some epochs of the training")


_SETTINGS = ("active_units", "beta", "learning_rate")


def _is_told(name: str, history: Sequence[Mapping[str, float]]) -> bool:
    """Whether the table has a column of this name: of what never changes it has none."""
    values = {row[name] for row in history if name in row}
    return len(values) > (1 if name in _SETTINGS else 0)


def best_epoch(history: Sequence[Mapping[str, float]]) -> int | None:
    """The place of the epoch in which the ELBO, or what is in its place, was best on held-out rows; or None."""
    measure = measure_in(history, HELD_OUT)
    name = HELD_OUT + measure.name
    found = {i: measure.sign * row[name] for i, row in enumerate(history) if name in row}
    found = {i: value for i, value in found.items() if math.isfinite(value)}
    return max(found, key=lambda i: found[i]) if found else None


def _cell(row: Mapping[str, float], name: str) -> str:
    value = row.get(name, math.nan)
    return format(value, _EPOCHS[name][1]) if math.isfinite(value) else "-"


def lowest_of(rows: Mapping[str, Sequence[Any]] | None, measure: Measure = ELBO_MEASURE) -> str:
    """By what rows are the worst: log p(x), the ELBO where that is not known of any, or the distortion.

    Args:
        rows: Columns of evaluation.csv.
        measure: What stands where the ELBO would.
    """
    for name, text in (("log_likelihood", "log p(x)"), (measure.name, measure.text)):
        if any(map(math.isfinite, (rows or {}).get(name, ()))):
            return text
    return "distortion" if (rows or {}).get("distortion") else measure.text


def title_of_worst(
    rows: Mapping[str, Sequence[Any]] | None, measure: Measure = ELBO_MEASURE
) -> str:
    """What the table of the worst rows is called."""
    name = lowest_of(rows, measure)
    return f"Rows with the {'highest' if name == 'distortion' else 'lowest'} {name}"


def worst_rows(
    rows: Mapping[str, Sequence[Any]], measure: Measure = ELBO_MEASURE, most: int = 10
) -> Markup:
    """The rows with the lowest log p(x), from evaluation.csv; empty if there are none.

    Where log p(x) is not known of any row, they are those with the lowest ELBO, or what the pair has in its
    place.
    """
    columns = [name for name in _OF_ROWS if name in rows]
    if "log_likelihood" not in columns:
        return Markup("")
    values = rows["log_likelihood"]
    by = lowest_of(rows, measure)
    if by == "distortion":
        columns, values = ["distortion"], [-value for value in rows["distortion"]]
    elif by == measure.text and measure.name in columns:
        columns = [name for name in columns if name in measure.columns]
        values = rows[measure.name]
    order = sorted((i for i, v in enumerate(values) if math.isfinite(v)), key=lambda i: values[i])
    cells = [
        [str(i), *(_of_row(name, _told(rows, name, i)) for name in columns)] for i in order[:most]
    ]
    return table(
        ["row", *(_OF_ROWS[name] for name in columns)],
        cells,
        title_of_worst(rows, measure),
    )


_OF_ROWS = {
    "log_likelihood": "log p(x)",
    **{each.name: each.text for each in MEASURES[:-1]},
    **{each.rate: _called(each.rate_text) for each in MEASURES[:-1]},
    "distortion": "distortion",
    "khat": "k-hat",
    "unreliable": "unreliable",
    "method": "way",
}


def _told(rows: Mapping[str, Sequence[Any]], name: str, i: int) -> Any:
    """A value of a row; the way of one whose log p(x) has neither an error nor a tail is none by samples."""
    none = [rows[column][i] for column in ("log_likelihood_error", "khat") if column in rows]
    return "exact" if name == "method" and none == [0.0, -math.inf] else rows[name][i]


def _of_row(name: str, value: Any) -> str:
    if name == "unreliable":
        return "yes" if value else "no"
    if value == -math.inf:  # a k-hat of equal weights, which has no tail
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _mean(found: Mapping[str, Any], name: str) -> float:
    given = found.get(name)
    mean = given.get("mean") if isinstance(given, Mapping) else None
    return float(mean) if isinstance(mean, int | float) else math.nan


def _estimate(
    found: Mapping[str, Any],
    name: str,
    called: str,
    sentence: str,
    unit: str = "nats",
    bound: str = "",
) -> Iterator[Row]:
    """A mean with its standard error, if it is there; of a bound, the mean alone behind its sign."""
    given = found.get(name)
    if not isinstance(given, Mapping) or not _is_number(given.get("mean")):
        return
    if bound:
        yield called, f"{bound} {given['mean']:.2f} {unit}", sentence
        return
    error = given.get("standard_error")
    with_error = f" ± {error:.3f}" if isinstance(error, int | float) and _is_number(error) else ""
    yield called, f"{given['mean']:.3f}{with_error} {unit}", sentence


def _spread(
    found: Mapping[str, Any], name: str, called: str, sentence: str, end: str, form: str
) -> Iterator[Row]:
    """The median of values of rows and one of its ends, if they are there."""
    given = found.get(name)
    if (
        isinstance(given, Mapping)
        and _is_number(given.get("median"))
        and _is_number(given.get(end))
    ):
        yield called, f"{given['median']:{form}}, {end} {given[end]:{form}}", sentence
