"""Tables as plain text."""

from __future__ import annotations

from collections.abc import Sequence


def table(lines: Sequence[Sequence[str]]) -> str:
    """Columns side by side: the first to the left, the others to the right.

    Example:
        >>> print(table([["run", "ELBO"], ["a", "-3.5"]]))
        run  ELBO
        a    -3.5
    """
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            [
                line[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)),
            ]
        )
        for line in lines
    )
