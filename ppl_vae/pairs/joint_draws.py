"""One draw of all latents of each row, those that the model sums out among them."""

from __future__ import annotations

from collections.abc import Mapping

import pyro.poutine as poutine
from pyro.infer import infer_discrete
from torch import Tensor

from ppl_vae.pairs.handlers import Substitute
from ppl_vae.pairs.layout import Layout
from ppl_vae.pairs.pair import Pair
from ppl_vae.pairs.programs import Batch, as_args
from ppl_vae.pairs.traces import Trace, latent_sites


def draw_jointly(
    pair: Pair, layout: Layout, batch: Batch, values: Mapping[str, Tensor] | None = None
) -> Trace:
    """The model at one draw z ~ q(z | x) of each row, with c ~ p(c | x, z) for the latents c that it sums out.

    Call it inside `pair.scope()`.

    Args:
        pair: The pair.
        layout: The layout of the batch.
        batch: The rows.
        values: Values of the guide's sites that are not to be drawn.

    Returns:
        The trace of the model.

    Example:
        >>> import torch
        >>> from ppl_vae.guides import Exact
        >>> from ppl_vae.models import MixtureOfPCA
        >>> from ppl_vae.pairs import find_layout
        >>> model, x = MixtureOfPCA((3,), components=4), torch.randn(5, 3)
        >>> pair = Pair.of(model, Exact(model))
        >>> with pair.scope():
        ...     draw_jointly(pair, find_layout(pair, x), x).nodes["k"]["value"].shape
        torch.Size([5])
    """
    args = as_args(batch)
    guide = poutine.trace(Substitute(values or {})(pair.guide)).get_trace(*args)
    model = poutine.replay(pair.model, trace=guide)
    if layout.enumerated:
        # A site that is replayed has no place for the values of a latent above it, an observed one has.
        drawn = {name: site["value"] for name, site in latent_sites(guide).items()}
        for name in drawn:
            guide.remove_node(name)  # what is left says which rows a plate subsamples
        model = poutine.replay(poutine.condition(pair.model, data=drawn), trace=guide)
        model = infer_discrete(model, first_available_dim=-layout.nesting - 1, temperature=1)
    found: Trace = poutine.trace(model).get_trace(*args)
    return found
