"""`python -m ppl_vae` is `ppl-vae`."""

import os
import sys

# As in `ppl_vae.cli`: what a module is found by must not be the current folder.
if not sys.flags.safe_path and sys.path[:1] == [os.getcwd()]:
    del sys.path[0]

from ppl_vae.cli import main

if __name__ == "__main__":
    sys.exit(main())
