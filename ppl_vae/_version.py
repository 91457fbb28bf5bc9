"""The version of ppl_vae, in the one place that has it."""

__version__ = "0.1.0"
