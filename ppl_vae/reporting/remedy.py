"""Which lines to type a page may show: a diagnosis.json may be a stranger's, and what is typed is trusted."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence

_OPTIONS = (
    *("--objective.beta", "--objective.beta.epochs", "--objective.beta.start"),
    *("--objective.beta.end", "--objective.beta.nats", "--max_epochs", "--seed"),
    *("--learning_rate", "--model.likelihood", "--model.learn_sigma", "--guide"),
    *("--model.latent_dim", "--guide.latent_dim", "--objective", "--objective.commitment"),
    *("--model.quantizer.start", "--model.quantizer.restarts", "--model.quantizer.codes"),
    *("--model.quantizer.learner.decay", "--model.quantizer.learner.rate", "--guide.temperature"),
)
"""Options in the remedies of a diagnosis."""

_KINDS = ("train", "refit", "resume")

_VALUE = re.compile(r"[A-Za-z]\w*|[+-]?[0-9.]+(e[+-]?[0-9]+)?", re.ASCII)
"""A number, or the name of a class of ours: no path of another one."""

_CALLED = (
    r"ppl_vae\.(fit|refit_guide)|ppl_vae\.(objectives|likelihoods)\.[A-Z]\w*|torch\.nn\.Parameter|hasattr|"
    r"(model|guide)\.modules|part\.reset_parameters|any|part\.parameters|root\.modules|"
    r"ppl_vae\.pairs\.Pair(\(model, guide\)\.modules(\(\)\.values)?)?|torch\.nn\.init\.(xavier_)?normal_|p\.dim"
)
_READ = (
    rf"{_CALLED}|model|guide|x|p|p\.requires_grad|part|root|ppl_vae(\.\w+)?|torch(\.nn(\.init)?)?|"
    r"model\.(likelihood|log_sigma)|guide\.temperature|"
    r"model\.quantizer(\.levels(\[\d+\])?)?(\.restarts|\.codebook(\.decay|\.rate)?)?"
)

_MOST = 2000


def may_be_typed(options: Sequence[str]) -> bool:
    """Whether options of the command line are those of a remedy.

    Example:
        >>> may_be_typed(["train", "--objective.beta", "1"]), may_be_typed(["train", "--model", "my.Own"])
        (True, False)
    """
    kind, *words = options or [""]
    pairs = [(words[i], words[i + 1]) for i in range(0, len(words) - 1, 2)]
    return (
        kind in _KINDS
        and len(words) % 2 == 0
        and all(name in _OPTIONS and _VALUE.fullmatch(value) for name, value in pairs)
    )


def may_be_run(code: str) -> bool:
    """Whether a line of Python calls nothing but what is in a remedy.

    Example:
        >>> may_be_run("ppl_vae.fit(model, guide, x, max_epochs=200)"), may_be_run("exec(x)")
        (True, False)
    """
    if not code or len(code) > _MOST or not code.isascii():
        return False
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and not re.fullmatch(_CALLED, ast.unparse(node.func)):
            return False
        named = isinstance(node, ast.Name | ast.Attribute)
        if named and not re.fullmatch(_READ, ast.unparse(node)):
            return False
        if isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.Lambda):
            return False
    return True
