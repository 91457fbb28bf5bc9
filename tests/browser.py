"""A headless Chromium that opens the pages of a site, spoken to through its pipe, with no other package."""

from __future__ import annotations

import base64
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
in_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on PATH: apt-get install chromium"
)
# The browser reads commands from descriptor 3 and answers on 4.
START = "import os, sys; r, w = map(int, sys.argv[1:3]); r, w = os.dup(r), os.dup(w); "
START += "os.dup2(r, 3); os.dup2(w, 4); [os.set_inheritable(i, True) for i in (3, 4)]; "
START += "os.execv(sys.argv[3], sys.argv[3:])"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address under which the files of a folder can be read."""
    with ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(_Quiet, directory=folder)
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Browser:
    """A Chromium with one page.

    Args:
        folder: Where it keeps its files.
    """

    def __init__(self, folder: Path) -> None:
        assert CHROMIUM is not None
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        options = [
            *(
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--no-first-run",
            ),
            *(
                "--remote-debugging-pipe",
                f"--user-data-dir={folder}",
                "--hide-scrollbars",
                "about:blank",
            ),
        ]
        command = [sys.executable, "-c", START, str(theirs_in), str(theirs_out), CHROMIUM, *options]
        self._process = subprocess.Popen(
            command,
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder)},
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._in, self._out = os.fdopen(ours_in, "rb"), os.fdopen(ours_out, "wb")
        self._number, self.events = 0, list[dict[str, Any]]()
        self._session: str | None = None
        page = self.ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self.ask("Target.attachToTarget", targetId=page, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._session = None
        self.ask("Browser.close")
        self._process.wait(30)
        self._in.close()
        self._out.close()

    def ask(self, method: str, **params: Any) -> Any:
        """What the browser answers to a command."""
        self._number += 1
        number = self._number
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        self._out.write(json.dumps(message).encode() + b"\0")
        self._out.flush()
        while (answer := self._read()).get("id") != number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _read(self) -> dict[str, Any]:
        message = bytearray()
        while (byte := self._in.read(1)) != b"\0":
            assert byte, "the browser has ended"
            message += byte
        answer: dict[str, Any] = json.loads(message)
        return answer

    def value(self, expression: str) -> Any:
        """The value of an expression of JavaScript; promises are waited for."""
        answer = self.ask(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def open(self, address: str, width: int = 1280, dark: bool = False) -> None:
        """Opens a page and waits until it has loaded, with its pictures."""
        self.events.clear()
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.ask("Page.navigate", url=address)
        ready = f"document.readyState === 'complete' && location.href.startsWith({address!r})"
        deadline = time.monotonic() + 60
        while not self.value(ready):
            assert time.monotonic() < deadline, f"{address} does not load"
            time.sleep(0.05)
        # Pictures further down wait until they are scrolled to.
        self.value("for (const i of document.images) i.loading = 'eager'; 0")
        self.value(
            "Promise.all([...document.images].map(i => i.decode().catch(() => 0))).then(() => 0)"
        )

    def complaints(self) -> list[str]:
        """Errors and warnings on the console, exceptions, and answers that are errors."""
        found = []
        for event in self.events:
            params, kind = event.get("params", {}), event.get("method")
            if kind == "Runtime.exceptionThrown":
                found.append(
                    str(params["exceptionDetails"].get("exception", {}).get("description"))
                )
            elif kind == "Runtime.consoleAPICalled" and params["type"] in (
                "error",
                "warning",
                "assert",
            ):
                found.append(str([argument.get("value") for argument in params["args"]]))
            elif kind == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                found.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        return found

    def asked_for(self) -> list[str]:
        """The addresses that the page has asked for."""
        asked = [e["params"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return [params["request"]["url"] for params in asked]

    def missing_pictures(self) -> list[str]:
        """The pictures that have not loaded."""
        shown = (
            "[...document.images].filter(i => !(i.complete && i.naturalWidth > 0)).map(i => i.src)"
        )
        found: list[str] = self.value(shown)
        return found

    def too_wide(self) -> list[str]:
        """What stands out of a page that scrolls to the side; nothing if it does not."""
        widest = """(() => {
            const page = document.documentElement
            if (page.scrollWidth <= page.clientWidth) return []
            const wide = [...document.querySelectorAll('body *')]
                .filter(e => e.getBoundingClientRect().right > page.clientWidth + 1)
            return [page.scrollWidth + ' > ' + page.clientWidth,
                ...wide.slice(0, 5).map(e => e.outerHTML.slice(0, 100))]
        })()"""
        found: list[str] = self.value(widest)
        return found

    def cut_off(self) -> list[str]:
        """Formulas whose beginning cannot be scrolled to."""
        outside = """[...document.querySelectorAll('div.formula')]
            .filter(e => e.firstElementChild.getBoundingClientRect().left < e.getBoundingClientRect().left - 1)
            .map(e => e.textContent)"""
        found: list[str] = self.value(outside)
        return found

    def picture(self, file: Path, whole: bool = False) -> None:
        """Saves what is seen as PNG."""
        shot = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(shot["data"]))


def faults(browser: Browser, address: str, width: int, dark: bool) -> list[str]:
    """What is wrong with a page: the console, what it asks for elsewhere, pictures, what stands out of it."""
    browser.open(address, width, dark)
    kind, _, host, *_ = address.split("/")
    own = re.escape(address.partition("#")[0] if kind == "file:" else f"http://{host}/")
    elsewhere = [url for url in browser.asked_for() if not re.match(rf"{own}|data:|blob:", url)]
    shown = [*browser.missing_pictures(), *browser.too_wide(), *browser.cut_off()]
    return [*browser.complaints(), *shown, *elsewhere]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for the tests of a file."""
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser
