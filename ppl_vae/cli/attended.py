"""`ppl-vae` as a worker of a sweep starts it: it is interrupted when its standard input closes."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

from ppl_vae.cli.entry import main

_TRIES, _BETWEEN = 10, 5.0
"""How often the command is interrupted, and after how many seconds again."""


def _attend() -> None:
    """Waits until the worker closes the pipe, or has ended; then does what Ctrl-C does."""
    while os.read(0, 1024):
        pass
    for _ in range(_TRIES):  # a library that is being imported may lose one
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(_BETWEEN)
    os._exit(130)


if __name__ == "__main__":
    # A shell may have started the worker in the background, where SIGINT is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_attend, daemon=True).start()
    sys.exit(main())
