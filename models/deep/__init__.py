"""Models built from neural networks."""
