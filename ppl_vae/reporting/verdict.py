"""What a diagnosis says, as part of a page: what is used, why not more, what else is wrong, what to type."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ppl_vae.diagnosis import Cause
from ppl_vae.reporting.markup import Markup, element, joined, paragraph, table, to_type
from ppl_vae.reporting.numbers import limited
from ppl_vae.reporting.remedy import may_be_run, may_be_typed


def verdict(diagnosis: Mapping[str, Any], run: Path) -> Markup:
    """The first part of the page of a run.

    Args:
        diagnosis: The content of diagnosis.json.
        run: The folder of the run, as it is typed.
    """
    return joined([paragraph(headline(diagnosis), kind="headline"), *_cards(diagnosis, run)])


def headline(diagnosis: Mapping[str, Any]) -> str:
    """How many dimensions are used, and how much they carry.

    Example:
        >>> found = {"num_rows": 9, "active": [True, False], "collapsed": [False, True]}
        >>> headline(found | {"mutual_information": {"mean": 1.25, "standard_error": 0.1}})
        '1 of 2 latent dimensions is active, 1 has collapsed onto the prior. z carries 1.2 nats about x.'
    """
    if diagnosis.get("num_rows") == 1:
        return "One row was diagnosed: whether a dimension is active shows in several."
    active, collapsed = (_flags(diagnosis.get(name)) for name in ("active", "collapsed"))
    elements = diagnosis.get("of_elements")
    if isinstance(elements, Mapping):
        return _of_elements(elements, any(active))
    count, unused = sum(active), len(active) - sum(active)
    codes = diagnosis.get("of_codes")
    if isinstance(codes, list) and codes:
        told = str(diagnosis.get("summary", "")).partition("\n")[0]
        return told if told.endswith(".") else "The codes of a quantizer were diagnosed."
    if diagnosis.get("of_points"):
        told = str(diagnosis.get("summary", "")).partition("\n")[0]
        return told if told.endswith(".") else "The code of an autoencoder was diagnosed."
    if diagnosis.get("of_sentences"):
        told = str(diagnosis.get("summary", "")).partition("\n")[0]
        return told if told.endswith(".") else "A latent sentence was diagnosed."
    dimensions = f"latent dimension{'' if len(active) == 1 else 's'}"
    found = f"{count} of {len(active)} {dimensions} {'is' if count == 1 else 'are'} active"
    if unused:
        one = unused == 1
        if sum(collapsed) == unused:
            state = f"{'has' if one else 'have'} collapsed onto the prior"
        else:
            state = f"{'is' if one else 'are'} not"
        found = f"{found}, {unused} {state}"
    elif active:
        found = f"No collapse: {found}"
    nats = _mean(diagnosis.get("mutual_information"))
    if math.isnan(nats):
        return f"{found}."
    at_least = "at least " if limited(diagnosis) else ""
    return f"{found}. z carries {at_least}{max(0.0, nats):.1f} nats about x."


def _of_elements(found: Mapping[str, Any], used: bool) -> str:
    """Of a latent with many elements, such as a segment for each pixel."""
    state = "No collapse" if used else "Collapse"
    names = ("count", "values", "used_values", "rate", "gain")
    count, values, of_them, rate, gain = (_number(found.get(name)) for name in names)
    return (
        f"{state}: of {count:,.0f} elements with {values:.0f} values, of which {of_them:.1f} are used, x tells "
        f"{rate:.2g} nats each, and each is worth {gain:.2g} nats to the decoder."
    )


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _cards(diagnosis: Mapping[str, Any], run: Path) -> Iterator[Markup]:
    causes = _causes(diagnosis.get("causes"))
    faults = diagnosis.get("faults")
    options = dict(_pairs(diagnosis.get("fault_options")))
    cards = [
        *(_of_cause(cause, names, run) for cause, names in causes.items()),
        *(_of_fault(str(name), str(text), options.get(name), run) for name, text in _pairs(faults)),
    ]
    if cards:
        yield element("div", *cards, class_="cards")
    if not isinstance(faults, Mapping) or not isinstance(diagnosis.get("causes"), Mapping):
        # One of an earlier version, or from elsewhere.
        for line in str(diagnosis.get("summary", "")).splitlines():
            yield paragraph(line)
    elif not cards:
        yield paragraph("Nothing else was found to be wrong.")


def _of_cause(cause: Cause, names: list[str], run: Path) -> Markup:
    """Why some dimensions are not used: what shows it, what to do, what to type."""
    which = ", ".join(names) if len(names) <= 12 else f"{', '.join(names[:10])} and more"
    told = [paragraph(element("b", f"{which}: "), _sentence(cause.meaning))]
    if cause.evidence:
        told.append(paragraph(element("b", "What shows it: "), _sentence(cause.evidence, False)))
    told.append(paragraph(element("b", "What to do: "), _sentence(cause.remedy, False)))
    if may_be_typed(cause.options):
        told.append(to_type(cause.command(str(run))))
    elif may_be_run(cause.code):
        told.append(to_type(cause.code))
    return element("div", element("h3", _sentence(cause.name).rstrip(".")), *told, class_="card")


def _of_fault(name: str, text: str, options: object, run: Path) -> Markup:
    """Something else that is wrong; its sentence says what, and behind a semicolon what to do."""
    found, remedy = _parted(text)
    told = [paragraph(_sentence(found))]
    if remedy:
        told.append(paragraph(element("b", "What to do: "), _sentence(remedy, False)))
    if may_be_typed(_texts(options)):
        cause = Cause(name, found, "", remedy, options=tuple(_texts(options)))
        told.append(to_type(cause.command(str(run))))
    return element("div", element("h3", _sentence(name).rstrip(".")), *told, class_="card")


def _parted(text: str) -> tuple[str, str]:
    """A text before and behind its first semicolon outside of brackets.

    Example:
        >>> _parted("It overfits (a; b); stop earlier")
        ('It overfits (a; b)', 'stop earlier')
    """
    depth = 0
    for place, sign in enumerate(text):
        depth += (sign == "(") - (sign == ")")
        if depth == 0 and text[place : place + 2] == "; ":
            return text[:place], text[place + 2 :]
    return text, ""


def _sentence(text: str, capital: bool = True) -> str:
    """A text with a full stop, and a capital at its beginning, unless that is a formula.

    Example:
        >>> _sentence("it is"), _sentence("log p(x) is")
        ('It is.', 'log p(x) is.')
    """
    text = text.strip().rstrip(".")
    capital = capital and not text.startswith(("log p", "z", "q(", "p("))
    return f"{text[:1].upper() if capital else text[:1]}{text[1:]}."


def latent_table(diagnosis: Mapping[str, Any]) -> Markup:
    """The latent dimensions, largest KL first; empty if the diagnosis does not list them."""
    names = _texts(diagnosis.get("names"))
    kls, variances = (_numbers(diagnosis.get(name)) for name in ("kl", "mean_variance"))
    active, collapsed = (_flags(diagnosis.get(name)) for name in ("active", "collapsed"))
    sizes = {len(kls), len(variances), len(active), len(collapsed)}
    if not names or sizes != {len(names)}:
        return Markup("")
    causes = {name: cause for cause, of in _causes(diagnosis.get("causes")).items() for name in of}
    rows = []
    for i in sorted(range(len(names)), key=lambda i: -math.inf if math.isnan(kls[i]) else -kls[i]):
        state = "active" if active[i] else "collapsed" if collapsed[i] else "not active"
        why = causes[names[i]].name if names[i] in causes else ""
        rows.append((names[i], f"{kls[i]:.3f}", f"{variances[i]:.4f}", state, why))
    head = ["latent", "KL (nats)", "variance of means", "state", "why"]
    return table(head, rows, "Latent dimensions", words=[3, 4])


def codebook_table(diagnosis: Mapping[str, Any]) -> Markup:
    """The codebooks of a quantizer; empty if there are none."""
    codes = diagnosis.get("of_codes")
    causes = diagnosis.get("causes")
    rows = []
    for use in codes if isinstance(codes, list) else []:
        if not isinstance(use, Mapping):
            continue
        name = str(use.get("name", ""))
        spread, within, lag = (_number(use.get(key)) for key in ("spread", "within", "lag"))
        cause = causes.get(name) if isinstance(causes, Mapping) else None
        why = str(cause.get("name", "")) if isinstance(cause, Mapping) else ""
        counts = [_number(use.get(key)) for key in ("count", "values", "used", "dead")]
        shares = [part / spread if spread > 0 else math.nan for part in (within + lag, lag)]
        rows.append(
            (
                name,
                *(f"{count:,.0f}" for count in counts),
                f"{_number(use.get('perplexity')):.1f}",
                *("-" if math.isnan(share) else f"{share:.1%}" for share in shares),
                why,
            )
        )
    if not rows:
        return Markup("")
    head = ["codebook", "per row", "K", "used", "dead", "perplexity", "error", "lag", "why"]
    return table(head, rows, "Codebooks", words=[8])


_WORDS = ("name", "meaning", "evidence", "remedy", "code")


def _causes(given: object) -> dict[Cause, list[str]]:
    """The dimensions of each cause; without what is none."""
    found: dict[Cause, list[str]] = {}
    for name, cause in _pairs(given):
        if isinstance(cause, Mapping):
            told = {word: str(cause.get(word, "")) for word in _WORDS}
            made = Cause(**told, options=tuple(_texts(cause.get("options"))))
            found.setdefault(made, []).append(str(name))
    return found


def _pairs(given: object) -> list[tuple[Any, Any]]:
    return list(given.items()) if isinstance(given, Mapping) else []


def _texts(given: object) -> list[str]:
    return [str(text) for text in given] if isinstance(given, list) else []


def _flags(given: object) -> list[bool]:
    return [bool(flag) for flag in given] if isinstance(given, list) else []


def _numbers(given: object) -> list[float]:
    numbers = given if isinstance(given, list) else []
    return [float(n) if isinstance(n, int | float) else math.nan for n in numbers]


def _mean(given: object) -> float:
    mean = given.get("mean") if isinstance(given, Mapping) else None
    return float(mean) if isinstance(mean, int | float) else math.nan


def doubts(results: Iterable[Mapping[str, Any]]) -> Markup:
    """The warnings of results, then their notes, each once."""
    given = [*results]
    warned = dict.fromkeys(text for result in given for text in _texts(result.get("warnings")))
    noted = dict.fromkeys(text for result in given for text in _texts(result.get("notes")))
    return joined(
        [
            *(paragraph(element("b", "Warning: "), text, kind="warn") for text in warned),
            *(paragraph("Note: ", text, kind="soft") for text in noted),
        ]
    )
