"""`python -m ppl_vae` is `ppl-vae`."""

import sys

from ppl_vae.cli.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
