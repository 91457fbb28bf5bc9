"""Models of sequences: sums over all paths in closed form."""
