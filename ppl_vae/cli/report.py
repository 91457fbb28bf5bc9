"""The subcommand `report`, and the page at the end of a training or a sweep."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from ppl_vae.cli.common import ELSEWHERE, require_writable, writing
from ppl_vae.cli.output import say, show
from ppl_vae.cli.output_files import output_file
from ppl_vae.reporting import ReportExtraError, html_report
from ppl_vae.runs import REPORT
from ppl_vae.runtime import DiskFullError, as_typed, write_bytes
from ppl_vae.sweeps import SPEC


def report(parser: ArgumentParser, given: Namespace) -> int:
    """Writes the page of a run, or of a sweep."""
    options = parser.get_defaults()
    options.update(given)
    folder = Path(options.folder)
    output = output_file(options, folder / REPORT, (".html", ".htm"))
    if options.output is None and not (folder / SPEC).is_file():
        require_writable(folder, ELSEWHERE)
    page = html_report(folder).encode()
    with writing(None, output, ELSEWHERE):
        write_bytes(output, page, overwrite=options.overwrite)
    say(f"{len(page) / 1e6:.1f} MB, for a browser; it needs no network")
    show(output)
    return 0


def write_report(folder: Path) -> list[str]:
    """Writes the page into the folder of a run or a sweep; if that fails, the reason is returned.

    Args:
        folder: The folder, which this process writes alone.
    """
    try:
        write_bytes(folder / REPORT, html_report(folder).encode())
    except DiskFullError:
        raise
    except ReportExtraError as error:
        return [f"{REPORT} was not written: {error}"]
    except Exception as error:  # of matplotlib or of what is in the folder
        again = f"`ppl-vae report {as_typed(folder)} --overwrite` tries again"
        return [f"{REPORT} was not written: {error} ({again})"]
    return []
