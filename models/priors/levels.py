"""The priors of codes on several grids, each given those above it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pyro.distributions as dist
from torch import Tensor, nn

from ppl_vae.models.priors.codes import CodePrior
from ppl_vae.networks import CodesAbove


class LevelPriors(nn.ModuleList):
    """p(z_L) prod_l p(z_l | z_{l+1}, ..., z_L): the module of each level, from the lowest.

    That of the highest level is p(z_L); the others were built with `CodesAbove` as their context.
    `ppl_vae.refit_prior` fits one after the other, and leaves what it found as `fitted`.

    Args:
        priors: The modules, from the lowest.
        sites: The site of each in the model.
    """

    def __init__(self, priors: Sequence[nn.Module], sites: Sequence[str]) -> None:
        super().__init__(priors)
        self.sites = tuple(sites)

    @classmethod
    def built(
        cls,
        priors: Sequence[CodePrior],
        grids: Sequence[tuple[int, int]],
        codes: Sequence[int],
        sites: Sequence[str],
    ) -> LevelPriors:
        """Builds the prior of each level, given those above.

        Args:
            priors: What each is built from, from the lowest.
            grids: The height and width of each.
            codes: The number of values of the codes of each.
            sites: The site of each.
        """
        contexts = [CodesAbove(grids[i:], codes[i:]) for i in range(1, len(grids))]
        lower = [
            prior.build_codes(grid, count, context)
            for prior, grid, count, context in zip(priors, grids, codes, contexts, strict=False)
        ]
        return cls([*lower, priors[-1].build_codes(grids[-1], codes[-1])], sites)

    def given(self, *above: Tensor) -> dist.TorchDistribution:
        """p(z_l | z_{l+1}, ..., z_L) of the level below codes `(*batch, *grid)`, which are from the nearest."""
        prior = self[len(self) - 1 - len(above)]
        p = prior(cast(CodesAbove, prior.context).joined(*above)) if above else prior()
        return cast(dist.TorchDistribution, p)
