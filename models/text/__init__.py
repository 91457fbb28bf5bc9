"""Models of text: a sentence as the latent variable of another one."""
