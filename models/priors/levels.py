"""The priors of codes on several grids, each given those above it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pyro.distributions as dist
from torch import Tensor, nn

from ppl_vae.models.priors.codes import CodePrior, require_context
from ppl_vae.networks import CodesAbove, Context


class LevelPriors(nn.ModuleList):
    """p(z_L | c) prod_l p(z_l | z_{l+1}, ..., z_L, c): the module of each level, from the lowest.

    That of the highest level was built with what rows come with as its context, if anything; the others with
    `CodesAbove`, which holds that, too. `ppl_vae.refit_prior` fits one after the other, and leaves what it
    found as `fitted`.

    Args:
        priors: The modules, from the lowest.
        sites: The site of each in the model.
        contexts: The context that each was built with; None if there is none.
    """

    def __init__(
        self,
        priors: Sequence[nn.Module],
        sites: Sequence[str],
        contexts: Sequence[Context | None],
    ) -> None:
        super().__init__(priors)
        self.sites = tuple(sites)
        self.contexts = tuple(contexts)

    @classmethod
    def built(
        cls,
        priors: Sequence[CodePrior],
        grids: Sequence[tuple[int, int]],
        codes: Sequence[int],
        sites: Sequence[str],
        context: Context | None = None,
    ) -> LevelPriors:
        """Builds the prior of each level, given those above.

        Args:
            priors: What each is built from, from the lowest.
            grids: The height and width of each.
            codes: The number of values of the codes of each.
            sites: The site of each.
            context: What rows come with; None if they come alone.
        """
        contexts: list[Context | None] = [
            *(CodesAbove(grids[i:], codes[i:], context=context) for i in range(1, len(grids))),
            context,
        ]
        modules = [
            prior.build_codes(grid, count, *([] if given is None else [given]))
            for prior, grid, count, given in zip(priors, grids, codes, contexts, strict=True)
        ]
        return cls(modules, sites, contexts)

    def given(self, *above: Tensor, c: Tensor | None = None) -> dist.TorchDistribution:
        """p(z_l | z_{l+1}, ..., z_L, c) of a level.

        Args:
            above: Codes `(*batch, *grid)` of the levels above it, from the nearest; none for p(z_L | c).
            c: What the rows come with, if anything.

        Raises:
            TypeError: c is missing, or there is none.
        """
        level = len(self) - 1 - len(above)
        given = self.joined(level, above, c)
        p = self[level]() if given is None else self[level](given)
        return cast(dist.TorchDistribution, p)

    def joined(self, level: int, above: Sequence[Tensor], c: Tensor | None) -> Tensor | None:
        """What the prior of a level is called with; None if nothing.

        Args:
            level: The number of the level; 0 is the lowest.
            above: As for `given`.
            c: As there.

        Raises:
            TypeError: As there.
        """
        context = self.contexts[level]
        require_context(f"the prior of '{self.sites[level]}'", self.contexts[-1], c)
        return context.joined(*above, c=c) if isinstance(context, CodesAbove) else c
