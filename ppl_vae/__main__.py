"""`python -m ppl_vae` is `ppl-vae`."""

import os
import sys

# As `ppl_vae.cli`: `python -m` puts the current folder first on the path, where its files would stand in for
# any module.
if not sys.flags.safe_path and sys.path[:1] == [os.getcwd()]:
    del sys.path[0]

from ppl_vae.cli import main

if __name__ == "__main__":
    sys.exit(main())
