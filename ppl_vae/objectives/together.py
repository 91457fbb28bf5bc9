"""Several objectives in one step: all of their turns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from ppl_vae.objectives.alternating import Alternating, Turn, require_unweighted
from ppl_vae.pairs import Pair
from ppl_vae.runtime import described


@dataclass(frozen=True, kw_only=True)
class Together(Alternating):
    """Several objectives with turns, all of which are taken with each batch, one after the other.

    Back-translation goes with denoising, say, and with pairs that are known:

        denoising = SentenceDenoising(german, noise=WordNoise(), learn_prior=False, elbo_rows=0)
        Together([BackTranslation(german), denoising])

    The ELBO that is logged is that of the first turn of the first one. Only one of them may have `learn_prior`:
    p(z) would take several steps with each batch.

    Attributes:
        parts: The objectives, two or more, each with beta = 1.

    Raises:
        TypeError: One of them is no objective with turns.
        ValueError: There are fewer than two, or two of a kind, or one has a beta that is not 1, or p(z) learns
            from two.

    Example:
        >>> import torch
        >>> from ppl_vae.objectives import BackTranslation, KnownLatents
        >>> x, z = torch.tensor([0, 1]), torch.tensor([1, 0])
        >>> len(Together([BackTranslation(z), KnownLatents((x, z), learn_prior=False)]).parts)
        2
    """

    judged_by_elbo = False
    why_no_free_bits = ": objectives with turns of their own have none; set free_bits=0"

    parts: Sequence[Alternating] = field(kw_only=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_unweighted(self)
        if isinstance(self.parts, Alternating | str) or not isinstance(self.parts, Sequence):
            raise TypeError(
                f"Together.parts must be a list of objectives, got {described(self.parts)}: write "
                "Together([...])"
            )
        for part in self.parts:
            if not isinstance(part, Alternating):
                raise TypeError(
                    f"Together.parts must be objectives with turns, such as BackTranslation(german), got "
                    f"{described(part)}"
                )
            if part.beta != 1:
                raise ValueError(
                    f"Together.parts must have beta = 1, got {type(part).__name__} with {part.beta!r}"
                )
        if len(self.parts) < 2:
            raise ValueError(f"Together.parts must be two or more, got {len(self.parts)}")
        kinds = Counter(type(part).__name__ for part in self.parts)
        if twice := [name for name, count in kinds.items() if count > 1]:
            raise ValueError(f"Together.parts must be of several kinds, got two of {twice[0]}")
        of_prior = [
            type(part).__name__ for part in self.parts if getattr(part, "learn_prior", False)
        ]
        if len(of_prior) > 1:
            raise ValueError(
                f"Together: p(z) would learn from {' and '.join(of_prior)}, by a step of each with every "
                "batch: give learn_prior=False to all but one"
            )
        object.__setattr__(self, "parts", tuple(self.parts))

    def turns(self, pair: Pair) -> Sequence[Turn]:
        """See `Alternating.turns`."""
        return [turn for part in self.parts for turn in part.turns(pair)]
