"""What a latent can know and what it costs: exact rate-distortion curves, and that of a frozen decoder.

For a pair, the rate is E KL(q(z | x) || p(z)) and the distortion is -E log p(x | z), so that the ELBO is
-(rate + distortion). Beta-VAE minimizes distortion + beta rate: its optimum is where the curve R(D) has the
slope dR/dD = -1 / beta ("Fixing a Broken ELBO", arXiv:1711.00464). `slope` is -dR/dD everywhere in this room.

All is in nats. Whatever has a `rate` and a `distortion` is a point in `ppl_vae.plots.rate_distortion`.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
