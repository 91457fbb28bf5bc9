"""Models with a discriminator beside them."""
