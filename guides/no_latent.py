"""The guide of a model without latents."""

from __future__ import annotations

from typing import Any

from torch import nn

from ppl_vae.networks import Rebuildable


class NoLatent(Rebuildable, nn.Module):
    """A guide that draws nothing: for models without latents, and those that sum all of theirs out.

    With it, the ELBO is log p(x). A function that does nothing, `lambda x: None`, is as good; this one can be
    saved in a run, and named on the command line.

    Example:
        >>> import torch
        >>> from ppl_vae.models import LanguageModel
        >>> from ppl_vae.networks import EncoderDecoder
        >>> model = LanguageModel((6,), words=20, network=EncoderDecoder(width=8, layers=1, heads=2))
        >>> guide, x = NoLatent(), torch.tensor([[5, 7, 1, 0, 0, 0]])
        >>> from ppl_vae import evaluate
        >>> bool(evaluate(model, guide, x, num_samples=1).log_likelihood.mean < 0)
        True
    """

    def __init__(self) -> None:
        super().__init__()

    def forward(self, *batch: Any) -> None:
        """Draws nothing."""
