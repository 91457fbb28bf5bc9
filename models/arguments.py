"""Checks of constructor arguments that many models and priors share."""

from __future__ import annotations


def require_at_least_one(owner: object, **counts: int) -> None:
    """Raises a ValueError that names the first of the `counts` below 1, as an argument of `owner`."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{type(owner).__name__}.{name} must be at least 1, got {count}")


def require_positive(owner: object, **values: float) -> None:
    """Raises a ValueError that names the first of the `values` that is not positive."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{type(owner).__name__}.{name} must be positive, got {value}")
