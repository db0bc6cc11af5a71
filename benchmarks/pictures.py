"""README's pictures, from what ``make demo`` has left: ``python -m benchmarks.pictures demo-output docs/images``.

Needs chromium with its driver. They show scenes that the demo renders, so no picture of others is in the repository.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from testing.browser import open_browser, show

WIDTH = 1280
_COLOURS = 128  # pages have few, and their pictures are small
_SHEET_ROWS = 2 / 3  # of the demo's contact sheet
_MARGIN = 16
# By name: the page in the demo's output, and the first and the last of its sections that are shown.
PAGES = {
    "summary": ("annotations/summary.html", "Classes", "Scores and sizes"),
    "report": ("evaluation/report.html", "Results", "Results"),
}
_EDGES = """
const [top, bottom] = [...arguments].map(text =>
    [...document.querySelectorAll("h2")].find(h => h.textContent.trim() === text).closest("section"));
return [top.getBoundingClientRect().top + scrollY, bottom.getBoundingClientRect().bottom + scrollY]
"""


def _sections(driver: Any, page: Path, first: str, last: str) -> Image.Image:
    """A part of a page."""
    show(driver, page.resolve(), WIDTH, 800)
    top, bottom = (round(edge) for edge in driver.execute_script(_EDGES, first, last))
    show(driver, page.resolve(), WIDTH, bottom + _MARGIN)  # a window as high as the page has no bar to scroll
    picture = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
    return picture.crop((0, max(0, top - _MARGIN), WIDTH, bottom + _MARGIN))


def main(argv: Sequence[str] | None = None) -> int:
    """Make them; returns an exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("demo", type=Path, help="output folder of the demo")
    parser.add_argument("out", type=Path, help="folder of the pictures")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    with Image.open(args.demo / "contact_sheet.png") as sheet:
        top = sheet.convert("RGB").crop((0, 0, sheet.width, round(sheet.height * _SHEET_ROWS)))
    top.save(args.out / "annotated.jpg", quality=85, optimize=True)
    with tempfile.TemporaryDirectory() as profile, open_browser(Path(profile)) as driver:
        for name, (page, first, last) in PAGES.items():
            picture = _sections(driver, args.demo / page, first, last)
            picture.quantize(_COLOURS).save(args.out / f"{name}.png", optimize=True)
    for file in sorted(args.out.iterdir()):
        print(f"{file}: {file.stat().st_size / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
