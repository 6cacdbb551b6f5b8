"""Headless Chromium for tests, spoken to over a pipe in its DevTools protocol; needs nothing but the browser itself."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
REQUIRED = "BLURIFY_BROWSER_REQUIRED"
CHOSEN = "BLURIFY_BROWSER"
PATIENCE = 120.0  # seconds; machines that run tests can be busy


def find_browser() -> str:
    """The browser's path. Without one the test is skipped, or fails where BLURIFY_BROWSER_REQUIRED is set."""
    chosen = os.environ.get(CHOSEN)
    found = next(filter(None, map(shutil.which, (chosen,) if chosen else NAMES)), None)
    if found is None:
        message = (
            f"no Chromium or Chrome on this machine: install one (Debian: apt-get install chromium), or set {CHOSEN}"
        )
        if os.environ.get(REQUIRED, "") not in ("", "0"):
            pytest.fail(f"{message}; {REQUIRED} is set, so this is no reason to skip")
        pytest.skip(message)
    return found


class Browser:
    """One page of a running browser, and what it complained of and asked the network for."""

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back = to, back
        self._numbers = itertools.count(1)
        self._rest = b""
        self._session: str | None = None
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._loaded = False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "Accessibility"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and wait for its result."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._note(answer)

    def open(
        self, page: Path, *, width: int = 1200, height: int = 900, scheme: str = "light", phone: bool = False
    ) -> None:
        """Load a file into a window of a size, in the light or the dark scheme."""
        self.complaints.clear()
        self.requests.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._loaded = False
        self.call("Page.navigate", url=page.as_uri())
        while not self._loaded:
            self._note(self._receive())

    def run(self, script: str) -> Any:
        """The value of an expression of JavaScript in the page; promises are waited for."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def screenshot(self) -> bytes:
        """The whole page as a PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        picture = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(picture["data"])

    def accessible(self) -> list[dict[str, Any]]:
        """What a screen reader is told: nodes with role and name, in order, those that it ignores left out."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [
            {"role": node["role"]["value"], "name": node.get("name", {}).get("value", "")}
            for node in nodes
            if not node["ignored"]
        ]

    def _receive(self) -> dict[str, Any]:
        until = time.monotonic() + PATIENCE
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._back], [], [], max(until - time.monotonic(), 0))
            assert ready, f"the browser said nothing for {PATIENCE:.0f} s"
            part = os.read(self._back, 1 << 20)
            assert part, "the browser has ended"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _note(self, message: dict[str, Any]) -> None:
        method, said = message.get("method"), message.get("params", {})
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Log.entryAdded":
            self.complaints.append(said["entry"]["text"])
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(str([argument.get("value") for argument in said["args"]]))
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(said["exceptionDetails"]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])


@contextmanager
def running_browser(folder: Path) -> Iterator[Browser]:
    """A browser that keeps everything it writes in `folder`, ended when the body is done."""
    path = find_browser()
    theirs_in, to = os.pipe()
    back, theirs_out = os.pipe()
    arguments = [
        path, "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-extensions",
        "--force-color-profile=srgb", f"--user-data-dir={folder / 'profile'}", "about:blank",
    ]  # fmt: skip
    # The browser reads file descriptor 3 and writes 4; the shell puts ours there.
    command = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
    with open(folder / "browser.log", "wb") as log:
        process = subprocess.Popen(
            ["bash", "-c", command, "bash", *arguments],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder)},
            start_new_session=True,
        )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Browser(to, back)
    except (AssertionError, OSError) as error:
        error.add_note((folder / "browser.log").read_text(errors="replace")[-2000:])
        raise
    finally:
        os.close(to)
        os.close(back)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)  # its own session: only what was started here
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
