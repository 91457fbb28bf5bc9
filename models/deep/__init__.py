"""Models with networks in them."""
