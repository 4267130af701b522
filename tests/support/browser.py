"""A real Chromium for tests, without a window: Debian's chromium and chromium-driver, driven by Selenium."""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

AXE = Path(__file__).parent / "axe" / "axe.min.js"
SECONDS = 30.0


def missing() -> str:
    """Why there is no browser here; "": there is one."""
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            return f"{program} (Debian: chromium, chromium-driver)"
    return ""


def _lines_of(violation: str | dict[str, Any]) -> list[str]:
    if isinstance(violation, str):  # axe-core itself failed
        return [violation]
    nodes = violation["nodes"]
    return [f"{violation['id']}: {node['html'][:160]}: {node['failureSummary']}" for node in nodes]


class Browser:
    """A tab. Every page's errors are collected: an error on the console, or a rule of the policy that was broken."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        self.driver.get(url)

    def run(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def find(self, css: str) -> Any:
        from selenium.webdriver.common.by import By

        return self.driver.find_element(By.CSS_SELECTOR, css)

    def text(self, css: str = "main") -> str:
        """What a person reads there."""
        return str(self.run("return document.querySelector(arguments[0])?.innerText ?? ''", css))

    def press(self, *keys: str) -> None:
        """Press keys where the focus is."""
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def until(self, condition: Callable[[], object]) -> None:
        """Wait for a page to get there."""
        from selenium.common.exceptions import WebDriverException
        from selenium.webdriver.support.wait import WebDriverWait

        wait = WebDriverWait(self.driver, SECONDS, 0.05, ignored_exceptions=[WebDriverException])
        wait.until(lambda _: condition(), "it never happened")

    def shows(self, words: str) -> None:
        """Wait until a person can read some words."""
        self.until(lambda: words in " ".join(self.text().split()))

    def be(self, width: int, scheme: str, zone: str = "UTC") -> None:
        """Have a width, a light or a dark scheme, and a time zone."""
        command = self.driver.execute_cdp_cmd
        command("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        command("Emulation.setDeviceMetricsOverride", size)
        command("Emulation.setTimezoneOverride", {"timezoneId": zone})

    def violations(self) -> list[str]:
        """What axe-core finds wrong with the page: rule, element, and why."""
        if not self.run("return typeof window.axe === 'object'"):
            self.run(AXE.read_text())
        found = self.driver.execute_async_script(
            "const done = arguments[0]; axe.run(document).then((found) => done(found.violations), (e) => done([String(e)]))"
        )
        return [line for each in found for line in _lines_of(each)]

    def problems(self) -> list[str]:
        """Errors since the last call: of scripts, of what could not be loaded, of the policy."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def picture(self, path: Path, height: int = 900) -> None:
        """Save what the page looks like, in a palette of few colours: small."""
        from io import BytesIO

        width = self.run("return innerWidth")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        taken = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
        image = pytest.importorskip("PIL.Image").open(BytesIO(base64.b64decode(taken["data"])))
        image.convert("RGB").quantize(64, dither=0).save(path, optimize=True)


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser; the test is skipped where there is none."""
    if lacking := missing():
        pytest.skip(lacking)
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--lang=en-GB"):
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    driver.set_script_timeout(SECONDS)
    driver.set_page_load_timeout(SECONDS)
    try:
        yield Browser(driver)
    finally:
        driver.quit()
