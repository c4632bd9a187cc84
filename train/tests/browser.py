"""A browser for the tests of pages: Debian's or any other Chromium that is on the machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
RUNNING: list[Any] = []


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium; skips where there is none. Inside another one of these it is the same browser."""
    if RUNNING:  # playwright has one loop in a process
        yield RUNNING[0]
        return
    found = next((path for path in map(shutil.which, NAMES) if path), None)
    if found is None:
        pytest.skip(f"none of {', '.join(NAMES)} is installed (on Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    root = hasattr(os, "geteuid") and os.geteuid() == 0  # Chromium's sandbox refuses to run as root
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"] if root else [])
        RUNNING.append(chromium)
        yield chromium
        RUNNING.clear()
        chromium.close()


@contextmanager
def opened(chromium: Any, path: Path, address: str = "", **context: Any) -> Iterator[Any]:
    """A file in a new window. On closing: nothing was said on the console, nothing asked of any network."""
    complaints: list[str] = []
    window = chromium.new_context(**context)
    page = window.new_page()
    page.set_default_timeout(120_000)  # milliseconds, for a machine that is busy
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri() + address)
    yield page
    window.close()
    assert complaints == []
    assert len(requests) == 1, requests  # the file itself


def luminance(colour):
    """WCAG's, of #rgb or #rrggbb."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    levels = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    red, green, blue = (level / 12.92 if level <= 0.04045 else ((level + 0.055) / 1.055) ** 2.4 for level in levels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    """WCAG's ratio, from 1 to 21."""
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)
