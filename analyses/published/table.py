"""The rows of published tables that were reproduced in these run folders, with their paired differences.

python analyses/published/table.py runs/vae-1 runs/iwae-5 runs/iwae-50
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from report import COLUMNS, cells, read

from ppl_vae.stats import Estimate


def main() -> None:
    """Prints a line for each run; the gain is the trusted log p(x) minus that of the first run, row by row."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "run_dir", type=Path, nargs="+", help="a run that a script beside this one has evaluated"
    )
    try:
        found = [read(run_dir) for run_dir in parser.parse_args().run_dir]
    except FileNotFoundError as error:
        parser.error(str(error))
    columns = [*COLUMNS, "gain", "gain, theirs"]
    print("|", " | ".join(columns), "|")
    print("|", " | ".join(["---"] * len(columns)), "|")
    first_theirs, first = found[0]
    for theirs, ours in found:
        gain = published = ""
        if ours is not first and ours.rows["sha256"] == first.rows["sha256"]:
            difference = torch.tensor(ours.trusted) - torch.tensor(first.trusted)
            gain = Estimate(difference).numbers(".2f")
            if theirs.log_likelihood is not None and first_theirs.log_likelihood is not None:
                published = f"{theirs.log_likelihood - first_theirs.log_likelihood:.2f}"
        print("|", " | ".join([*cells(theirs, ours), gain, published]), "|")


if __name__ == "__main__":
    main()
