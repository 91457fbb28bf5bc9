"""Models of sentences, whose latents are sentences of another language."""
