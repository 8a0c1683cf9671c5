"""Chromium on the page, for its test; as a script, the page's image for the documentation:
`python tests/web_browser.py docs/web.png`."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
ASTRONAUT = ROOT / "examples" / "astronaut.jpg"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_PATIENCE = 120_000  # milliseconds, on a busy machine


@contextmanager
def open_page(address: str) -> Iterator[Any]:
    """The page, loaded, in a window 1440 pixels wide."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=_ARGUMENTS, timeout=_PATIENCE
        )
        page = browser.new_page(viewport={"width": 1440, "height": 860})
        page.set_default_timeout(_PATIENCE)
        page.requested = []
        page.on("request", lambda request: page.requested.append(request.url))
        page.goto(address)
        page.get_by_text("Download matte").wait_for()
        yield page
        browser.close()


def give(page: Any, photo: Path) -> None:
    """Upload as the photo, in place of another one if there is."""
    clear = page.get_by_label("Remove Image")
    if clear.count():
        clear.first.click()
    page.locator("input[type=file]").first.set_input_files(photo)


def wait_for_results(page: Any) -> None:
    page.wait_for_function(
        "[...document.querySelectorAll('img')].filter("
        "image => image.src.includes('preview-') && image.complete && image.naturalWidth"
        ").length >= 4"
    )


def main(target: Path) -> None:
    command = [sys.executable, "-m", "portraitmatting", "web", "--no-browser"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        line = next(line for line in process.stdout if "the page is at" in line)
        with open_page(line.split()[4]) as page:
            give(page, ASTRONAUT)
            wait_for_results(page)
            page.mouse.move(0, 0)
            page.wait_for_timeout(3000)  # for what fades in and out
            page.screenshot(path=target)
        process.terminate()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
