"""The name of a model in a file: of what it makes of codes, and nothing else."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Iterator, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from ppl_vae.networks import Recipe, recipe_of
from ppl_vae.runtime import digest

_MOST_VECTORS = 2**20
"""Most codes of a quantizer whose vectors are looked at: no prior has tables for more."""

_AT_ONCE = 2**16
"""Vectors that are computed at once."""

_OF_ANY_MODULE = frozenset(vars(nn.Module())) | {"_recipe"}
"""What torch keeps in a module, and how it was built: a part that was replaced since is not in that."""


_IN_FILES = {"AttentionBlock": "_Block"}
"""Classes that have another name in files: the one that they had when files were first written."""

_NEWER = frozenset({("AttentionBlock", "attention_dropout")})
"""Settings that came later, of which a decoder in evaluation mode knows nothing."""


def name_of_decoder(model: Any) -> bytes:
    """A digest of all that turns codes into a picture, 8 bytes.

    That is the weights; the vectors of all codes; and of each module beside the quantizer its class, its
    buffers and what else it was set to, such as the heads of an attention or the noise of a likelihood. The
    quantizer's other settings say how it learns, and not what it means.

    Args:
        model: A model with a `quantizer` and `positions`, or several `quantizers` and `grids`, and a
            `data_shape`, in double precision.

    Example:
        >>> from ppl_vae.codes import FSQ
        >>> from ppl_vae.models import VQVAE
        >>> from ppl_vae.networks import ConvolutionalGrid
        >>> network = ConvolutionalGrid(channels=4, blocks=0)
        >>> model, other = (VQVAE((1, 8, 8), FSQ(levels), network) for levels in ((4, 5), (5, 4)))
        >>> _ = other.load_state_dict(model.state_dict())
        >>> name_of_decoder(model) == name_of_decoder(other)
        False
    """
    state = sorted(model.state_dict().items())
    several = hasattr(model, "quantizers")
    quantizers = [*model.quantizers] if several else [model.quantizer]
    words = [name for name, _ in state] + [str(tuple(model.grids if several else model.positions))]
    words.append(digest(tensor for _, tensor in state))
    words += [digest(_vectors(quantizer)) for quantizer in quantizers]
    of_quantizer = {id(module) for quantizer in quantizers for module in quantizer.modules()}
    for name, module in model.named_modules():
        words.append(f"{name} {_named(type(module))}")
        if id(module) in of_quantizer:
            continue
        buffers = sorted(module.named_buffers(recurse=False))
        words += [f"{each} {digest([tensor])}" for each, tensor in buffers]
        for each, value in sorted(vars(module).items()):
            newer = (type(module).__name__, each) in _NEWER
            told = None if each in _OF_ANY_MODULE or newer else _told(value)
            words += [] if told is None else [f"{each} = {told}"]
    return hashlib.sha256("\n".join(words).encode()).digest()[:8]


def _vectors(quantizer: Any) -> Iterator[Tensor]:
    """The vectors of all codes, level by level; of a level, those of its codes with the others at code 0.

    They are rounded to 8 bits: their settings show there, and the last digits of a length, which processors
    compute differently, do not.
    """
    depth = getattr(quantizer, "depth", 1)
    device = next((t.device for t in quantizer.state_dict().values()), None)
    for level in range(depth):
        for codes in torch.arange(min(quantizer.codes, _MOST_VECTORS), device=device).split(
            _AT_ONCE
        ):
            z = codes
            if depth > 1:
                z = codes.new_zeros(len(codes), depth)
                z[:, level] = codes
            yield quantizer.embed(z).bfloat16()


def _told(value: Any) -> str | None:
    """A setting in words, the same for the same one; None of what is none, such as a result that is kept."""
    if value is None or isinstance(value, bool | str):
        return repr(value)
    if isinstance(value, Real):
        return repr(float(value))  # a run says 1.0 where 1 was given
    if isinstance(value, Tensor):
        return digest([value])
    if isinstance(value, functools.partial):
        return _told([value.func, value.args, value.keywords])
    if isinstance(value, list | tuple):
        return _all([_told(each) for each in value])
    if isinstance(value, Mapping):
        return _all([_told(each) for pair in sorted(value.items(), key=repr) for each in pair])
    if isinstance(value, type) or inspect.isroutine(value):
        return _named(value)
    recipe = value if isinstance(value, Recipe) else recipe_of(value)
    return None if recipe is None else _all([_named(recipe.kind), _told(recipe.arguments)])


def _all(parts: list[str | None]) -> str | None:
    """Some settings; None if one of them is none."""
    known = [part for part in parts if part is not None]
    return f"({', '.join(known)})" if len(known) == len(parts) else None


def _named(kind: Any) -> str:
    name = str(getattr(kind, "__qualname__", kind))
    return _IN_FILES.get(name, name)
