"""What of a command took how long."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from ppl_vae.cli.output import say
from ppl_vae.runtime import duration, on_terminal


class Stages:
    """The stages of a command: one line at the end of each where there is no terminal, and all in the end.

    Args:
        quiet: Tell nothing.
    """

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._took: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, told: bool = True) -> Iterator[None]:
        """Measures a stage; one that is entered again goes on.

        Args:
            name: What it is called.
            told: Whether to print a line at its end.
        """
        start = time.monotonic()
        yield
        seconds = time.monotonic() - start
        self._took[name] = self._took.get(name, 0.0) + seconds
        if told and not self._quiet and not on_terminal():
            say(f"{name}: {duration(seconds)}")

    def tell(self) -> None:
        """Says what took how long."""
        if self._quiet:
            return
        width = max(map(len, self._took), default=0)
        lines = [f"  {name:{width}}  {duration(took)}" for name, took in self._took.items()]
        say("\n".join([f"took {duration(sum(self._took.values()))}:", *lines]))
