"""Linear Gaussian models."""
