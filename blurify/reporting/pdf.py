"""The page on paper: printed to PDF by a Chromium or Chrome that is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from blurify.errors import BlurifyError, one_line

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
CHOSEN = "BLURIFY_BROWSER"
_PATIENCE = 120.0  # seconds
_INSTEAD = "write -o report.html, and print it from a browser"


def find_browser() -> str:
    """The path of a browser that prints; the one that the environment's BLURIFY_BROWSER names, where it names one.

    Raises:
        BlurifyError: there is none.
    """
    chosen = os.environ.get(CHOSEN)
    found = next(filter(None, map(shutil.which, (chosen,) if chosen else BROWSERS)), None)
    if found is None:
        what = f"no {chosen}, which {CHOSEN} names" if chosen else "no Chromium or Chrome"
        raise BlurifyError(
            f"a PDF is printed by a browser, and there is {what}: install one, or write -o report.html and print it "
            "from any browser"
        )
    return found


def printed(page: bytes) -> bytes:
    """A page of `render` as a PDF.

    The browser gets a profile of its own, which is thrown away, and no network.

    Raises:
        BlurifyError: there is no browser, or it fails.
    """
    browser = find_browser()
    with tempfile.TemporaryDirectory(prefix="blurify-pdf-", ignore_cleanup_errors=True) as folder:
        source, target = Path(folder, "page.html"), Path(folder, "page.pdf")
        source.write_bytes(page)
        arguments = [
            browser, "--headless", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--no-pdf-header-footer", "--disable-background-networking", "--disable-component-update",
            "--disable-extensions",
            f"--user-data-dir={Path(folder, 'profile')}", f"--print-to-pdf={target}", source.as_uri(),
        ]  # fmt: skip
        if hasattr(os, "geteuid") and os.geteuid() == 0:  # it refuses to run as root with its sandbox
            arguments.insert(1, "--no-sandbox")
        try:
            done = subprocess.run(
                arguments, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE, check=False,
                env={**os.environ, "HOME": folder, "XDG_CONFIG_HOME": folder},
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BlurifyError(f"{browser} did not print the page ({one_line(error)}): {_INSTEAD}") from error
        data = target.read_bytes() if target.is_file() else b""
        if not data.startswith(b"%PDF"):
            said = done.stderr.decode(errors="replace").strip().splitlines()
            why = one_line(said[-1], 200) if said else f"exit code {done.returncode}"
            raise BlurifyError(f"{browser} did not print the page ({why}): {_INSTEAD}")
    return data
