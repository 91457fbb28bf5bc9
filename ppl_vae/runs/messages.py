"""Shortens the messages of jsonargparse. In a file of its own, because it is needed without torch."""

from __future__ import annotations

import re

_INTRODUCTION = re.compile(
    r"\s*(- )?(Parser key \S+:$|Problem with|Does not validate|Subtypes:|Errors:|Given value"
    r"|Expected a <class 'NoneType'>|Expected a path but|$)"
)


_LONGEST = 4000
"""Characters of a message that are looked at: a value in it may be long, and made to slow a search down."""


def plain(message: str) -> str:
    r"""What is wrong with a value, without the types that jsonargparse tried.

    Example:
        >>> plain("Parser key 'max_epochs'".replace("'", '"') + ":\n  Expected a <class 'int'>. Got value: x")
        '--max_epochs: expected int, got x'
    """
    if len(message) > _LONGEST:
        message = f"{message[: _LONGEST // 2]} ... {message[-_LONGEST // 2 :]}"
    keys = re.findall(r'Parser key "([\w.]+)":', message)
    reasons = [line.strip(" -") for line in message.splitlines() if not _INTRODUCTION.match(line)]
    if (
        "Does not validate" in message and len(reasons) > 1
    ):  # what a class of the right name has said
        reasons = (
            [r for r in reasons if not r.startswith("Expected a <class")] if not keys else reasons
        )
    if not reasons or not (keys or "Does not validate" in message):
        return message
    reason = "; ".join(dict.fromkeys(reasons))
    reason = re.sub(r'Parser key "[\w.]+":;? ', "", reason)
    reason = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", reason)
    reason = re.sub(r"a typing\.Literal\[(.*?)\]", r"one of \1", reason)
    reason = re.sub(
        r"a dot import path string: ",
        "the name of a known class or a full name such as package.module.Class, got ",
        reason,
    )
    reason = reason.replace("Expected a ", "expected ").replace(". Got value:", ", got")
    given = re.search(r"Given value: (?!NestedArg|Namespace|\{)(.+)", message)
    if given and ", got" not in reason:
        reason += f", got {given[1]}"
    other_kind = r"Import path (?:[\w.]+ )?does not correspond to a subclass of \w+"
    reason = re.sub(f"; {other_kind}|{other_kind}; ", "", reason)
    if "<class 'torch.Tensor'>" in message:  # which no text can be
        reason = re.sub(r"; [Ee]xpected the name of a known class [^,;]+(?=, got)", "", reason)
    reason = re.sub(r"[Tt]ype collections\.abc\.Callable\[.*\] expects .*? class: ", "", reason)
    missing = "the class is missing: name it, too"
    reason = re.sub(r"Dict must include a class_path.*", missing, reason)
    reason = re.sub(r"\.?, got Namespace\(.*\)", "", reason)
    reason = re.sub(
        r"expected float(;.*)?, got ([+-]?(?:inf|infinity|nan))$",
        r"expected a finite number, got \2",
        reason,
        flags=re.IGNORECASE,
    )
    # YAML's 1e2 is a float; on a command line it is read as 100 before
    reason = re.sub(r"^(expected int, got (\d+)\.0)$", r"\1: write \2", reason, flags=re.IGNORECASE)
    reason = re.sub(
        r"(expected float; )?expected an instantiatable class, but [\w.]+ is abstract",
        missing,
        reason,
        flags=re.IGNORECASE,
    )
    if not keys:
        return reason
    if keys[0] in ("model", "guide", "objective"):
        reason += f" (--{keys[0]}.help CLASS lists what it takes)"
    return f"--{'.'.join(keys)}: {reason[0].lower()}{reason[1:]}"
