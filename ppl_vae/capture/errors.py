"""Why something cannot be captured."""

from __future__ import annotations


class CaptureError(RuntimeError):
    """A computation that a recording cannot replace; the message says why."""


def reason_of(error: BaseException) -> str:
    """Why a recording failed, in one line."""
    text = str(error)
    if "_local_scalar_dense" in text or "data-dependent" in text:
        return (
            "the programs turn a tensor into a Python number (.item(), float(), or an `if` on it)"
        )
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first[:200]}"


class StaleRecordingError(CaptureError):
    """A recording that has been used is not right: what it has computed is not to be trusted."""


DIFFERS = "{} from Pyro's. Usual causes: Python or NumPy state, tensors that are replaced or changed in place"
"""What was recorded and Pyro do not agree; with the place of what, as in 'the loss differs'."""
