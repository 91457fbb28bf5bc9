"""Models whose latent is codes of a quantizer."""
