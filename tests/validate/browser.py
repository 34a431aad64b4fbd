"""A headless Chromium driven over its DevTools socket: open a page, read its console, take pictures."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
# Software rendering, so that WebGL works on machines without a GPU.
FLAGS = (
    "--headless=new", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-sandbox", "--hide-scrollbars",
    "--no-first-run", "--disable-extensions", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--mute-audio", "--disable-dev-shm-usage", "--remote-debugging-port=0",
)  # fmt: skip
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"


def find_browser() -> str | None:
    """Path of an installed Chromium, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One tab. Collects console errors, exceptions and every address it asks for."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._next = 0
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, timeout: float = 60, **params: Any) -> dict[str, Any]:
        """Call a DevTools method and wait for its answer, noting events on the way."""
        self._next += 1
        self._socket.send(json.dumps({"id": self._next, "method": method, "params": params}))
        deadline = time.monotonic() + timeout
        while True:
            message = json.loads(self._socket.recv(timeout=max(0.01, deadline - time.monotonic())))
            if message.get("id") == self._next:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]
            self._note(message)

    def listen(self, seconds: float) -> None:
        """Let the page run for a while."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            try:
                self._note(json.loads(self._socket.recv(timeout=left)))
            except TimeoutError:
                return

    def _note(self, message: dict[str, Any]) -> None:
        method, params = message.get("method"), message.get("params", {})
        if method == "Runtime.consoleAPICalled":
            words = " ".join(str(a.get("value", a.get("description", ""))) for a in params["args"])
            if params["type"] in ("error", "assert"):
                self.errors.append(words)
            elif params["type"] == "warning":
                self.warnings.append(words)
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(str(details.get("exception", {}).get("description", details.get("text"))))
        elif method == "Log.entryAdded":
            entry = params["entry"]
            line = f"{entry['source']}: {entry['text']} {entry.get('url', '')}"
            (self.errors if entry["level"] == "error" else self.warnings).append(line)
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"][:200])

    def open(self, address: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Load ``address`` in a window of the given size and colour scheme; what was noted before is forgotten."""
        for notes in (self.errors, self.warnings, self.requests):
            notes.clear()
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", features=scheme)
        self.send("Page.navigate", url=address)

    def run(self, script: str) -> Any:
        """Value of a JavaScript expression; promises are awaited."""
        got = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in got:
            raise RuntimeError(str(got["exceptionDetails"]))
        return got["result"].get("value")

    def wait(self, condition: str, seconds: float = 40) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while not self.run(condition):
            if time.monotonic() > end:
                raise TimeoutError(f"the page never reached: {condition}; errors: {self.errors}")
            self.listen(0.2)

    def picture(
        self, path: Path, clip: tuple[float, float, float, float] | None = None, whole: bool = False
    ) -> Path:
        """PNG of the window, of a rectangle (x, y, width, height) in page pixels, or of the whole page."""
        params: dict[str, Any] = {"format": "png", "captureBeyondViewport": whole or clip is not None}
        if clip is not None:
            params["clip"] = dict(zip(("x", "y", "width", "height"), clip), scale=1)
        elif whole:
            box = self.send("Page.getLayoutMetrics")["cssContentSize"]
            params["clip"] = {"x": 0, "y": 0, "width": box["width"], "height": box["height"], "scale": 1}
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", **params)["data"]))
        return path

    def box(self, selector: str) -> tuple[float, float, float, float]:
        """Rectangle of an element in window pixels."""
        found = self.run(f"(()=>{{const b=document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
                         "return [b.left,b.top,b.width,b.height]})()")  # fmt: skip
        return tuple(found)

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """One mouse event; kinds are mousePressed, mouseReleased, mouseMoved, mouseWheel."""
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def click(self, x: float, y: float) -> None:
        """Press and release the left button."""
        self.mouse("mouseMoved", x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, x, y, button="left", clickCount=1)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Drag with the left button in a few steps."""
        self.mouse("mousePressed", *start, button="left", clickCount=1)
        for i in range(1, 9):
            at = [a + (b - a) * i / 8 for a, b in zip(start, end)]
            self.mouse("mouseMoved", *at, button="left", buttons=1)
        self.mouse("mouseReleased", *end, button="left", clickCount=1)


@contextmanager
def browser(profile: Path, *, offline: bool = True) -> Iterator[Page]:
    """A fresh headless browser with one page; ``offline`` makes every host name unresolvable.

    Args:
        profile: empty folder for the browser's own files.
        offline: switch the network off (127.0.0.1 stays reachable).
    """
    from websockets.sync.client import connect

    program = find_browser()
    assert program is not None, "no Chromium installed"
    command = [program, *FLAGS, f"--user-data-dir={profile}", *([OFFLINE] if offline else []), "about:blank"]
    log = profile.parent / f"{profile.name}.log"
    with log.open("wb") as sink:
        # Its scratch files go beside the profile, because a terminated browser leaves them behind.
        place = os.environ | {"TMPDIR": str(profile.parent)}
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, env=place)
        try:
            endpoint = _endpoint(log, process)
            with connect(_first_page(endpoint), max_size=2**28, proxy=None) as socket:
                yield Page(socket)
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _endpoint(log: Path, process: subprocess.Popen[bytes], seconds: float = 60) -> str:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        found = re.search(r"DevTools listening on (ws://\S+)", log.read_text(errors="replace"))
        if found:
            return found.group(1)
        time.sleep(0.1)
    raise RuntimeError(f"the browser did not start: {log.read_text(errors='replace')[-2000:]}")


def _first_page(endpoint: str) -> str:
    """Socket address of the tab that is open at the start."""
    from websockets.sync.client import connect

    with connect(endpoint, max_size=2**26, proxy=None) as socket:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            socket.send(json.dumps({"id": 1, "method": "Target.getTargets"}))
            while (answer := json.loads(socket.recv(timeout=30))).get("id") != 1:
                continue
            for target in answer["result"]["targetInfos"]:
                if target["type"] == "page":
                    return f"{endpoint.split('/devtools/')[0]}/devtools/page/{target['targetId']}"
            time.sleep(0.1)
    raise RuntimeError("the browser opened no page")
