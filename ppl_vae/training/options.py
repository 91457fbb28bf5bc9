"""What is wrong with options of a training, as far as no data are needed to say so."""

from __future__ import annotations

import math
from typing import Any

import torch

from ppl_vae.runtime import require_count, require_number
from ppl_vae.training.optimizers import make_optimizer, make_scheduler, require_one_step_size


def require_fit_options(
    *,
    max_epochs: Any,
    batch_size: Any,
    patience: Any = None,
    learning_rate: Any = None,
    clip_grad_norm: Any = None,
    optimizer: Any = None,
    lr_scheduler: Any = None,
    held_out: bool = True,
    tries: bool = False,
) -> None:
    """Raises the errors that `fit` raises for its numbers, whatever the data and the pair are.

    Args:
        max_epochs: As for `fit`; so are the next ones.
        batch_size: Rows in a batch.
        patience: Epochs without a better held-out ELBO.
        learning_rate: Step size.
        clip_grad_norm: Largest norm of the gradient.
        optimizer: Makes an optimizer.
        lr_scheduler: Makes a schedule.
        held_out: Whether there are held-out rows.
        tries: Whether optimizer and schedule are made once, of a parameter of their own.

    Raises:
        TypeError: A number is none, or not whole.
        ValueError: It is out of its range, or optimizer or schedule cannot be made.

    Example:
        >>> require_fit_options(max_epochs=3, batch_size=0)
        Traceback (most recent call last):
        ValueError: batch_size must be at least 1, got 0
    """
    require_count("max_epochs", max_epochs)
    require_count("batch_size", batch_size)
    if patience is not None:
        require_count("patience", patience, least=None)
        if not held_out or patience < 1:
            raise ValueError(
                "early stopping watches the held-out ELBO: give validation rows, and a patience of at least 1"
            )
    for name, number in (("learning_rate", learning_rate), ("clip_grad_norm", clip_grad_norm)):
        if number is not None:
            require_number(name, number)
            if not (number > 0 and math.isfinite(number)):
                raise ValueError(f"{name} must be positive, got {number}")
    require_one_step_size(optimizer, learning_rate)
    if tries:
        leaf = torch.zeros(1, requires_grad=True)
        make_scheduler(make_optimizer([leaf], optimizer, learning_rate), lr_scheduler)
