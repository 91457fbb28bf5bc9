"""Checks of the arguments of constructors: networks, likelihoods, models, guides and priors share them."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Iterable, Sequence
from numbers import Integral, Real

import torch
from torch import nn

from ppl_vae.runtime import require_flags


def require_at_least_one(owner: object, **counts: int) -> None:
    """Raises an error for a count that is no whole number, or below 1.

    Args:
        owner: The object whose arguments they are; the message names its class.
        counts: The arguments, by name.

    Raises:
        TypeError: One of them is no whole number.
        ValueError: One of them is less than 1.

    Example:
        >>> require_at_least_one([], length=0)
        Traceback (most recent call last):
        ValueError: list.length must be at least 1, got 0
    """
    require_at_least(owner, 1, **counts)


def require_at_least(owner: object, least: int, **counts: int) -> None:
    """`require_at_least_one` with another least value.

    Raises:
        TypeError: One of them is no whole number.
        ValueError: One of them is less.
    """
    for name, count in counts.items():
        owned = f"{type(owner).__name__}.{name}"
        if not _is_whole(count):
            raise TypeError(f"{owned} must be a whole number, got {count!r:.80}")
        if count < least:
            raise ValueError(f"{owned} must be at least {least}, got {count}")


def require_numbers(owner: object, **values: float) -> None:
    """Raises an error for an argument that is no real number: True and False are none.

    Args:
        owner: The object whose arguments they are; the message names its class.
        values: The arguments, by name.

    Raises:
        TypeError: One of them is something else.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{type(owner).__name__}.{name} must be a number, got {value!r:.80}")


def require_switches(owner: object, **values: bool) -> None:
    """Checks that arguments are True or False, not 1 or "yes".

    Raises:
        TypeError: One is neither.
    """
    require_flags(**{f"{type(owner).__name__}.{name}": value for name, value in values.items()})


def require_room(owner: object, advice: str, *sizes: int) -> None:
    """Raises an error for weights that the memory of this machine cannot hold.

    A system may promise more memory than it has, and then end the program without a word.

    Args:
        owner: The object that will hold the weights; the message names its class. Or its name.
        advice: What to choose smaller.
        sizes: The dimensions of the weights.

    Raises:
        ValueError: They do not fit.

    Example:
        >>> require_room([], "choose fewer columns", 3, 10**15)
        Traceback (most recent call last):
        ValueError: list would hold 3 x 1,000,000,000,000,000 numbers, ...
    """
    asked = math.prod(sizes) * torch.get_default_dtype().itemsize
    if asked < 2**30 or torch.get_default_device().type != "cpu":
        return
    room = _memory()
    what = owner if isinstance(owner, str) else type(owner).__name__
    if asked > room:
        raise ValueError(
            f"{what} would hold {' x '.join(f'{size:,}' for size in sizes)} numbers, which take "
            f"{asked / 2**30:,.0f} GiB of memory, and this machine has {room / 2**30:.0f} GiB: {advice}"
        )


def _memory() -> float:
    """The memory of this machine, in bytes; infinite where it is not known."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # on other systems
        return math.inf


def _is_whole(given: object) -> bool:
    return isinstance(given, Integral) and not isinstance(given, bool)


def require_data_shape(owner: object, data_shape: Sequence[int]) -> None:
    """Raises an error for what is no shape of a row.

    Args:
        owner: The object whose argument it is; the message names its class.
        data_shape: The argument.

    Raises:
        TypeError: It is no sequence of whole numbers.
        ValueError: One of them is less than 1.
    """
    name = f"{type(owner).__name__}.data_shape"
    if isinstance(data_shape, str) or not isinstance(data_shape, Iterable):
        raise TypeError(f"{name} must be the shape of a row, such as (5,), got {data_shape!r}")
    if not all(_is_whole(size) for size in data_shape):
        raise TypeError(f"{name} must hold whole numbers, got {tuple(data_shape)}")
    if any(size < 1 for size in data_shape):
        raise ValueError(f"{name} must hold positive numbers, got {tuple(data_shape)}")


def require_object(owner: object, name: str, given: object, method: str, example: str) -> None:
    """Raises an error for an argument that is no object of the kind that it must be.

    Args:
        owner: The object whose argument it is; the message names its class.
        name: The argument.
        given: What was given for it.
        method: What such objects have.
        example: One of them, as code.

    Raises:
        TypeError: It is a class, or has no such method.
    """
    if isinstance(given, type) or not hasattr(given, method):
        what = f"the class {given.__name__}" if isinstance(given, type) else repr(given)
        raise TypeError(
            f"{type(owner).__name__}.{name} must be an object such as {example}, got {what:.80}"
        )


def require_positive(owner: object, **values: float) -> None:
    """Raises an error for a number that is not positive.

    Args:
        owner: The object whose arguments they are; the message names its class.
        values: The arguments, by name.

    Raises:
        TypeError: One of them is no number.
        ValueError: One of them is not positive.
    """
    require_numbers(owner, **values)
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{type(owner).__name__}.{name} must be positive, got {value}")


def require_latent_dims(owner: object, latent_dims: Sequence[int]) -> None:
    """Raises an error unless `latent_dims` are the numbers of dimensions of two layers, z1 and z2.

    Args:
        owner: The object whose argument it is; the message names its class.
        latent_dims: The argument.

    Raises:
        TypeError: They are no sequence of whole numbers.
        ValueError: They are not two positive numbers.
    """
    what = (
        f"{type(owner).__name__}.latent_dims must be two positive numbers, those of z1 and z2, got"
    )
    if isinstance(latent_dims, str) or not isinstance(latent_dims, Iterable):
        raise TypeError(f"{what} {latent_dims!r:.80}")
    if not all(_is_whole(size) for size in latent_dims):
        raise TypeError(f"{what} {tuple(latent_dims)}")
    if len(latent_dims) != 2 or min(latent_dims) < 1:
        raise ValueError(f"{what} {tuple(latent_dims)}")


def require_widths(owner: object, *, allow_empty: bool = False, **widths: Sequence[int]) -> None:
    """Raises an error for a list of layers' widths in which one is not positive.

    Args:
        owner: The object whose arguments they are; the message names its class.
        allow_empty: Whether there may be no layers.
        widths: The arguments, by name.

    Raises:
        TypeError: It is no list of whole numbers.
        ValueError: A width is less than 1, or there is none.
    """
    for name, values in widths.items():
        owned = f"{type(owner).__name__}.{name}"
        if isinstance(values, str) or not isinstance(values, Iterable):
            raise TypeError(f"{owned} must be a list of widths, one for each layer, got {values!r}")
        if not all(_is_whole(value) for value in values):
            raise TypeError(f"{owned} must hold whole numbers, got {tuple(values)}")
        if any(value < 1 for value in values) or not (values or allow_empty):
            raise ValueError(f"{owned} must hold positive widths, got {tuple(values)}")


def require_activation(name: str, given: object) -> None:
    """Raises an error for what makes no layer when it is called without arguments.

    A class does, or a function such as `functools.partial(nn.LeakyReLU, 0.2)`.

    Args:
        name: What it is the value of, such as `MLP.activation`.
        given: What was given.

    Raises:
        TypeError: It does not; the message says what to write.
    """
    expected = f"{name} must be a class such as torch.nn.ReLU, got"
    if isinstance(given, nn.Module):
        raise TypeError(
            f"{expected} an object of {type(given).__name__}: write {type(given).__name__} without "
            "parentheses, so that each layer gets its own"
        )
    if not callable(given) or (inspect.isclass(given) and not issubclass(given, nn.Module)):
        raise TypeError(f"{expected} {given!r:.80}")
    own = getattr(given, "__name__", "")
    try:
        inspect.signature(given).bind()
    except ValueError:  # a function of C, which computes
        lacks = ""
    except TypeError as error:
        lacks = f" ({error})"
    else:
        return
    if inspect.isclass(given):
        raise TypeError(
            f"{expected} {own}, which cannot be made without arguments{lacks}: give "
            f"functools.partial({own}, ...), if it is an activation"
        )
    kinds = {n.lower(): n for n, kind in vars(nn).items() if inspect.isclass(kind)}
    layer = kinds.get(own.replace("_", "").lower())
    write = f": write torch.nn.{layer}" if layer else ""
    raise TypeError(f"{expected} the function {own}, which computes{write}")
