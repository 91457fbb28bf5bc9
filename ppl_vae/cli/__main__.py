"""`python -m ppl_vae.cli` is `ppl-vae`."""

import sys

from ppl_vae.cli.entry import main

if __name__ == "__main__":
    sys.exit(main())
