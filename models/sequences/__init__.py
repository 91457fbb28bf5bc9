"""Models of sequences, with sums over all paths in closed form."""
