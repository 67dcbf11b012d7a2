"""Opens reports in headless Chromium, for tests and for the screenshots of the documentation.

    python -m benchmarks.browser runs/demo/report.html --out=docs/report

writes `OUT-desktop.jpg` (1280 wide, light) and `OUT-phone.jpg` (390 wide, dark). Needs the extra `test` and
Debian's chromium and chromium-driver.
"""

from __future__ import annotations

import argparse
import base64
import shutil
import sys
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.wait import WebDriverWait

from semivl_jax import utils

SIZES = {"desktop": (1280, 900, "light"), "phone": (390, 844, "dark")}


def missing() -> str | None:
    """Names the program that is not installed; None if there is none."""
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            return f"no {program} here (Debian: apt-get install chromium chromium-driver)"
    return None


class Browser:
    """A Chromium window of the size of a desktop or phone; a context manager."""

    def __init__(self) -> None:
        options = webdriver.ChromeOptions()
        for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage",
                     "--disable-gpu", "--hide-scrollbars"):  # fmt: skip
            options.add_argument(flag)
        options.binary_location = shutil.which("chromium") or ""
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
        self.resize("desktop")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.driver.quit()

    def resize(self, name: str) -> None:
        """Width and colours of one of SIZES."""
        width, height, theme = SIZES[name]
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)

    def open(self, path: Path) -> None:
        """Opens a report and waits until all its charts are drawn."""
        self.driver.get(path.resolve().as_uri())
        script = "return document.documentElement.dataset.drawn"
        WebDriverWait(self.driver, 60).until(lambda driver: driver.execute_script(script))

    def run(self, script: str) -> Any:
        """Runs a script in the page and returns its value."""
        return self.driver.execute_script(script)

    def console(self) -> list[str]:
        """Messages of the console since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def picture(self, path: Path, *, height: int) -> None:
        """Saves the top of the page, as wide as the window, as a JPEG."""
        whole = self.run("return document.documentElement.scrollHeight")
        width = self.run("return innerWidth")
        scale = 0.75 if width > 1000 else 1
        clip = {"x": 0, "y": 0, "width": width, "height": min(whole, height), "scale": scale}
        shot = self.driver.execute_cdp_cmd(
            "Page.captureScreenshot",
            {"format": "jpeg", "quality": 70, "captureBeyondViewport": True, "clip": clip},
        )
        path.write_bytes(base64.b64decode(shot["data"]))


def parser() -> argparse.ArgumentParser:
    """Options and help of the command."""
    command = utils.Parser("benchmarks.browser", __doc__)
    command.add_argument("report", type=Path, help="a report.html")
    command.add_argument("--out", default="report", help="path without -desktop.jpg")
    command.add_argument(
        "--height", type=int, default=2600, help="most pixels of a picture's height"
    )
    return command


def main() -> None:
    """Takes the screenshots of a report."""
    options = parser().parse_args()
    if not options.report.is_file():
        sys.exit(
            f"error: there is no {options.report}; python -m semivl_jax.report WORKDIR makes one"
        )
    if problem := missing():
        sys.exit(f"error: {problem}")
    with Browser() as page:
        for name in SIZES:
            page.resize(name)
            page.open(options.report)
            page.picture(Path(f"{options.out}-{name}.jpg"), height=options.height)


if __name__ == "__main__":
    main()
