"""Drawing the weights of a pair anew, as a line of Python: what a collapse has switched off stays off."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from ppl_vae.pairs import Pair, Program


def with_new_weights(model: Program, guide: Program, code: str) -> str:
    """A line of Python that draws the weights of a pair anew, and then does something else.

    Weights that are not trained stay, such as those of a network that somebody else has trained, and so do
    tensors of a model that no part draws anew: they may be a noise, or rows of the data. With a guide that
    tells of x they get gradients.

    Args:
        model: The model.
        guide: The guide.
        code: What follows.

    Example:
        >>> def program(x): ...
        >>> with_new_weights(program, program, "ppl_vae.fit(model, guide, x)")
        'ppl_vae.fit(model, guide, x)'
    """
    lines = []
    if isinstance(model, nn.Module) and isinstance(guide, nn.Module):
        programs = {"model": model, "guide": guide}
        parts = [f"*{n}.modules()" for n, of in programs.items() if _drawn(of.modules())]
        lines += [_RESET.format(f"[{', '.join(parts)}]")] if parts else []
    elif _drawn(_parts_of(model, guide)):
        lines += [_RESET.format(_OF_PROGRAMS)]
    if isinstance(guide, nn.Module) and _has_tensors(guide):
        lines += [_RESET_TENSORS]
    return "; ".join([*lines, code])


def has_new_weights(model: Program, guide: Program) -> bool:
    """Whether `with_new_weights` gives the guide other weights than it has."""
    if isinstance(guide, nn.Module):
        return _drawn(guide.modules()) or _has_tensors(guide)
    return _drawn(_parts_of(model, guide))


def _parts_of(model: Program, guide: Program) -> list[nn.Module]:
    """The parts of all modules that two programs are, are methods of, or refer to."""
    if not (callable(model) and callable(guide)):
        return []
    return [part for root in Pair(model, guide).modules().values() for part in root.modules()]


def _drawn(parts: Iterable[nn.Module]) -> bool:
    """Whether one of them is trained, and draws its weights anew."""
    return any(
        hasattr(part, "reset_parameters") and any(p.requires_grad for p in part.parameters())
        for part in parts
    )


def _has_tensors(program: nn.Module) -> bool:
    """Whether it has parameters that belong to no such part."""
    return any(
        not hasattr(part, "reset_parameters")
        and any(p.requires_grad for p in part.parameters(recurse=False))
        for part in program.modules()
    )


_OF_PROGRAMS = (
    "[part for root in ppl_vae.pairs.Pair(model, guide).modules().values() "
    "for part in root.modules()]"
)
_RESET = (
    "[part.reset_parameters() for part in {} if hasattr(part, 'reset_parameters') "
    "and any(p.requires_grad for p in part.parameters())]"
)
_RESET_TENSORS = (
    "[torch.nn.init.xavier_normal_(p) if p.dim() > 1 else torch.nn.init.normal_(p, std=0.1) "
    "for part in guide.modules() if not hasattr(part, 'reset_parameters') "
    "for p in part.parameters(recurse=False) if p.requires_grad]"
)
