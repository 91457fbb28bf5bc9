"""Models of which the guide gives a point: autoencoders."""
