"""Values of latents that come from data, and not from a pair."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from ppl_vae.distributions import Sentences
from ppl_vae.pairs import (
    Layout,
    PairError,
    Site,
    Substitute,
    innermost,
    rows_outside,
    support_of,
)
from ppl_vae.runtime import described, digest

Values = Tensor | Mapping[str, Tensor]
"""Values of latents, `(m, *event)`, or those of each site by its name."""


class DrawsLatents(Protocol):
    """Anything that draws rows, such as `ppl_vae.data.Buckets`."""

    def draw(self, n: int) -> Any:
        """At most n rows, and at least one: `Values`, or rows of data with their `Values`."""


class RealLatents:
    """Real values of latents, of which some rows are drawn for each step; with the rows of data, if known.

    Args:
        draw: Gives n rows: what `found` of `drawn` is made of.
        name: What `repr` shows of it, by which a training that goes on tells whether it is the same.
        paired: Whether each comes with its row of data.
    """

    def __init__(self, draw: Callable[[int], Any], name: str, paired: bool = False) -> None:
        self._draw = draw
        self._name = name
        self.paired = paired

    @classmethod
    def of(cls, owner: str, given: Latents, paired: bool = False) -> RealLatents:
        """The rows that a user has given.

        Args:
            owner: The argument, for messages.
            given: A tensor `(m, *event)`, or one for each latent site, by name; or a function, or an object
                with a method `draw`, that takes a number n and returns n rows of them. If paired, `(x, z)` of
                these.
            paired: Whether rows of data belong to them.

        Raises:
            TypeError: It is something else.
            ValueError: There are no rows, or of one tensor more than of another.
        """
        if isinstance(given, RealLatents):
            return given
        draw = getattr(given, "draw", None)
        if callable(draw):
            return cls(draw, repr(given), paired)
        parts = given if isinstance(given, tuple) else (given,)
        held = len(parts) == 1 + paired and all(isinstance(p, Tensor | Mapping) for p in parts)
        if held and not (paired and isinstance(parts[0], Mapping)):
            return cls._of_tensors(owner, parts, paired)
        if callable(given):
            return cls(given, getattr(given, "__qualname__", type(given).__name__), paired)
        wanted = "real values of the latent, unpaired with the rows: a tensor (m, *event)"
        if paired:
            wanted = "rows and their latents, (x, z), each a tensor with as many rows as the other"
        raise TypeError(
            f"{owner} must be {wanted}, where z may be a dict of tensors by site, or something that draws "
            f"rows, such as Buckets(...), got {described(given)}"
        )

    @classmethod
    def _of_tensors(cls, owner: str, parts: tuple[Any, ...], paired: bool) -> RealLatents:
        named = [p if isinstance(p, Mapping) else {"": p} for p in parts]
        values = [value for part in named for value in part.values()]
        for value in values:
            if not isinstance(value, Tensor) or not value.dim():
                raise TypeError(f"{owner} must hold tensors of rows, got {described(value)}")
        counts = sorted({len(value) for value in values})
        if counts in ([0], []):
            raise ValueError(f"{owner} has no rows")
        if len(counts) > 1:
            raise ValueError(
                f"{owner}: its tensors must have as many rows as each other, got {counts}"
            )

        def draw(n: int) -> Any:
            index = torch.randint(counts[0], (n,))
            drawn = [{k: v.detach()[index.to(v.device)] for k, v in p.items()} for p in named]
            found = tuple(part.get("", part) for part in drawn)
            return found if paired else found[0]

        return cls(draw, f"<{counts[0]} rows, {digest(values)[:12]}>", paired)

    def __repr__(self) -> str:
        return self._name

    def drawn(
        self, n: int, layout: Layout, device: torch.device
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """At most n rows: those of the data, if they are paired, and the values of the latents by site.

        Args:
            n: How many rows; what draws them may draw fewer, to bound the memory.
            layout: That of the batch.
            device: Where they are wanted.

        Raises:
            PairError: They are not of the sites that the pair draws, or more than n, or none.
        """
        found, x = self._draw(n), None
        if isinstance(found, tuple) != self.paired or (self.paired and len(found) != 2):
            wanted = "a tuple (x, z)" if self.paired else "the latents alone, a tensor or a dict"
            raise PairError(
                f"draw({n}) of {self!r} has returned {described(found)}: expected {wanted}"
            )
        if self.paired:
            x, found = found
            x = x.to(device)
        if not isinstance(found, Mapping):
            if len(layout.latents) != 1:
                raise PairError(
                    f"the latents of a row are at the sites {', '.join(map(repr, layout.latents))}: give a "
                    "dict of their real values by site in place of one tensor"
                )
            found = {layout.latents[0]: found}
        if set(found) != set(layout.latents):
            raise PairError(
                f"real values are given for the sites {sorted(found)}, and the pair draws "
                f"{sorted(layout.latents)}: give values of all latents of a row"
            )
        values = {name: torch.as_tensor(value).to(device) for name, value in found.items()}
        drawn = {len(rows) for rows in (*values.values(), *([] if x is None else [x]))}
        if len(drawn) != 1 or not 0 < min(drawn) <= n:
            told = " and ".join(map(str, sorted(drawn)))
            raise PairError(
                f"draw({n}) of {self!r} has returned {told} rows: expected {n}, or fewer but not none"
            )
        return x, values


Latents = Values | tuple[Tensor, Values] | DrawsLatents | Callable[[int], Any] | RealLatents
"""What `RealLatents.of` takes: values, rows of data with their values, or what draws them."""


class SetReal(Substitute):
    """Sets latents to real values, and refuses those that the model gives no probability.

    Args:
        values: By site, `(n, *event)`.
        owner: The argument that they come from, for messages.
        dim: Where the plate over rows is.
    """

    def __init__(self, values: Mapping[str, Tensor], owner: str, dim: int) -> None:
        super().__init__(values)
        self._owner, self._dim = owner, dim

    def _pyro_sample(self, msg: Site) -> None:
        super()._pyro_sample(msg)
        if msg["name"] in self.values and not msg["is_observed"]:
            require_shape(self._owner, msg)
            require_possible(self._owner, msg, self._dim)


def require_shape(owner: str, site: Site) -> None:
    """Refuses real values of a latent that have not the shape of its draws; sentences may be narrower.

    Args:
        owner: The argument that they come from.
        site: The site of the latent, with these values.

    Raises:
        PairError: They have another shape.
    """
    fn, value = site["fn"], site["value"]
    wanted = tuple(fn.batch_shape or value.shape[:1]) + tuple(fn.event_shape)
    got = tuple(value.shape)
    narrower = isinstance(innermost(fn), Sentences) and got[:-1] == wanted[:-1]
    if got != wanted and not narrower:
        shape = ", ".join(["m", *map(str, wanted[1:])]) + "," * (len(wanted) == 1)
        raise PairError(
            f"{owner}: the values of site '{site['name']}' must have the shape ({shape}) for m rows, got rows "
            f"of the shape {got[1:]}"
        )


def require_possible(owner: str, site: Site, dim: int) -> None:
    """Refuses given values of a site that its distribution gives no probability.

    Args:
        owner: The argument that they come from.
        site: The site, with these values.
        dim: Where the plate over rows is.

    Raises:
        PairError: A value is outside of the support.
    """
    rows = rows_outside(site, dim)
    if rows:
        fn, value = site["fn"], site["value"]
        value = value.movedim(dim - len(fn.event_shape), 0)
        raise PairError(
            f"{owner}: {len(rows)} of the {len(value)} rows that were drawn from it have values of site "
            f"'{site['name']}' that are outside of its support in the model, {support_of(fn)}: the first is "
            f"{value[rows[0]].tolist()!s:.200}. Give values that the model may draw"
        )
