"""The console in a real Chromium: pages, filters, a session log's life, the keyboard, axe-core; pictures for the docs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from support.browser import Browser, browser
from support.console import HOSTILE, LOGSTORE, PROJECT, World
from support.netns import until

PICTURES = Path(__file__).resolve().parents[2] / "docs" / "pictures"
# Each page, with what a person reads there.
PAGES = {
    "/": "Gateways",
    "/g/ngw-1/": "Dropped packets by reason",
    "/g/ngw-1/log": "Destination Information",
    "/g/ngw-1/log/enable": "Create Logstore",
    "/g/ngw-1/log/stop?name=audit": "Stop the session log audit",
    "/g/ngw-1/sessions?subscriber=10.0.0.9": "sessions that match",
    "/g/ngw-1/ports": "those with the fewest free ones first",
    "/g/ngw-1/top": "Rates over the last",
    "/g/ngw-1/who": "Outside address and port",
    "/g/ngw-1/who?endpoint=203.0.113.1:1100&protocol=tcp&when=then&at=2026-11-20T12:03:17Z": "gap",
    "/g/ngw-1/explain?frame=00&side=inside": "DROP_MALFORMED",
    "/g/ngw-1/entries": "What a reload would change",
    "/g/nowhere/": "no gateway",
}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as made:
        yield made


@pytest.fixture
def tab(chromium: Browser, address: str) -> Iterator[Browser]:
    """A tab that came in by the printed URL."""
    chromium.be(1200, "light")
    chromium.open(address)
    chromium.until(lambda: urlsplit(chromium.driver.current_url).path == "/" and chromium.find("h1").text == "Gateways")
    yield chromium
    assert chromium.problems() == []


def at(address: str, path: str) -> str:
    url = urlsplit(address)
    return f"{url.scheme}://{url.netloc}{path}"


def test_a_wrong_token_is_refused(chromium: Browser, address: str) -> None:
    chromium.driver.delete_all_cookies()
    for path in ("/?token=wrong", "/", "/g/ngw-1/log"):
        chromium.open(at(address, path))
        assert "A token is needed" in chromium.text() and "ngw-1" not in chromium.text()
    chromium.problems()  # 403s are what it is about


def test_the_token_leaves_the_address_bar_and_the_cookie_stays(tab: Browser, address: str) -> None:
    assert "token" not in tab.driver.current_url
    tab.open(at(address, "/g/ngw-1/"))
    assert "ngw-1" in tab.driver.title and tab.run("return document.cookie") == ""


@pytest.mark.parametrize("path", PAGES)
def test_no_page_has_a_violation_light_or_dark_narrow_or_wide(tab: Browser, address: str, path: str) -> None:
    tab.open(at(address, path))
    tab.shows(PAGES[path])
    for scheme in ("light", "dark"):
        for width in (400, 1600):
            tab.be(width, scheme)
            assert tab.violations() == [], (scheme, width)
            assert tab.run("return document.documentElement.scrollWidth") <= width, "it must not scroll sideways"
    if path == "/g/nowhere/":
        assert "503" in tab.problems()[0]


def test_sessions_are_filtered_and_sorted_by_hand(tab: Browser, address: str) -> None:
    tab.open(at(address, "/g/ngw-1/sessions"))
    tab.find("#subscriber").send_keys("10.0.0.9")
    tab.find(".filters button").click()
    tab.shows("sessions that match")
    rows = tab.run("return [...document.querySelectorAll('tbody th')].map((cell) => cell.innerText)")
    assert rows and all(row.startswith("10.0.0.9:") for row in rows)
    tab.run("[...document.querySelectorAll('thead a')].find((link) => link.textContent.includes('Bytes')).click()")
    tab.until(lambda: tab.find("[aria-sort]").text.startswith("Bytes out, in"))
    assert tab.find("[aria-sort]").get_attribute("aria-sort") == "descending"
    assert tab.find("#subscriber").get_attribute("value") == "10.0.0.9"


def test_a_session_log_is_enabled_watched_and_stopped(tab: Browser, address: str, here: World) -> None:
    """By a person who knows the cloud's page and presses what is there."""
    sls = here.sls
    tab.open(at(address, "/g/ngw-1/log"))
    row = "tbody tr:last-child"
    assert tab.find(f"{row} [data-label='Session Log Status']").text == "○ Disabled"
    tab.find(".head .button").click()
    tab.shows("NAT Gateway ID/Name")
    from selenium.webdriver.support.select import Select

    Select(tab.find("#project")).select_by_visible_text("other-project")
    tab.until(lambda: tab.find("#logstore").text.strip() == "other-store")
    tab.find("#new_logstore").send_keys("made-here")
    assert tab.find("#logstore-create").is_selected() and tab.find("#project-select").is_selected()
    tab.find("form button.main").click()
    tab.shows("The session log is started.")

    def nat() -> str:
        rows = "[...document.querySelectorAll('tbody tr')]"
        return str(tab.run(f"return {rows}.find((row) => row.cells[0].innerText.trim() === 'nat').innerText"))

    tab.until(lambda: "Enabled" in nat() and "Success" in nat())  # by itself: the page is live
    assert "other-project" in nat() and "made-here" in nat() and "sls" in nat()
    assert sls.projects["other-project"]["made-here"].index is not None
    sls.fail("LogStoreNotExist", None)
    here.end_a_session()
    tab.shows("UnavaliableTarget because of LogStoreNotExist")
    assert "Failed" in nat()
    sls.recover()
    tab.run("document.querySelector(\"form[action$='/retry'] button\").click()")
    tab.shows("The delivery is tried again now.")
    tab.until(lambda: "Success" in nat())
    until(lambda: sls.projects["other-project"]["made-here"].count > 0)
    tab.run("document.querySelector(\"a[href*='stop?name=nat']\").click()")
    tab.shows("Stop the session log nat of ngw-1?")
    tab.find("form button.main").click()
    tab.shows("The session log is stopped.")
    assert "Disabled" in nat()
    assert PROJECT in here.text() and LOGSTORE in here.text()  # the file's own are as they were
    assert sls.rows("other-project", "made-here")


def test_a_hostile_name_is_text(tab: Browser, address: str) -> None:
    for page in ("", "sessions", "entries"):
        tab.open(at(address, f"/g/hostile/{page}"))
        assert HOSTILE in tab.find("main").get_attribute("textContent")
        assert tab.run("return document.scripts.length") == 1


def test_everything_is_reached_by_the_keyboard(tab: Browser, address: str) -> None:
    from selenium.webdriver.common.keys import Keys

    tab.open(at(address, "/g/ngw-1/log"))
    tab.press(Keys.TAB)
    assert tab.run("return document.activeElement.textContent") == "Skip to the content"
    tab.press(Keys.ENTER)
    assert tab.run("return document.activeElement.id") == "main"
    seen = []
    for _ in range(4):
        tab.press(Keys.TAB)
        seen.append(tab.run("return document.activeElement.textContent.trim()"))
    assert seen[:2] == ["Pause", "Enable Session Log"]
    assert {"Stop audit", "Enable nat"} <= set(seen[2:] + seen)
    stop = "return document.activeElement.id"
    focused = tab.run(stop)
    tab.run("window.first = document.getElementById(arguments[0])", focused)
    tab.until(
        lambda: tab.run("return !window.first.isConnected")
    )  # the part came anew, and the focus stays where it was
    assert tab.run(stop) == focused
    tab.find("#pause").send_keys(Keys.ENTER)
    assert tab.find("#pulse").text == "Paused"


def test_times_are_in_utc_and_local(tab: Browser, address: str) -> None:
    tab.be(1200, "light", "Asia/Shanghai")
    tab.open(at(address, "/g/ngw-1/"))
    tab.until(lambda: "Asia/Shanghai" in tab.text(".facts"))
    utc, _, local = tab.find(".facts time").text.partition(" = ")
    assert utc.endswith(" UTC") and local.endswith(" Asia/Shanghai")


def test_pictures_for_the_documents(tab: Browser, address: str, here: World) -> None:
    """Taken anew with NATCORE_PICTURES set; else what the documents show must be there."""
    shown = {"overview": ("", 740), "session-log": ("log", 480), "enable": ("log/enable", 780), "ports": ("ports", 860)}
    assert {path.stem for path in PICTURES.glob("console-*.png")} == {f"console-{name}" for name in [*shown, "narrow"]}
    if "NATCORE_PICTURES" not in os.environ:
        return
    for name, (page, height) in shown.items():
        tab.be(1200, "light")
        tab.open(at(address, f"/g/ngw-1/{page}"))
        tab.picture(PICTURES / f"console-{name}.png", height)
    tab.be(400, "dark")
    tab.open(at(address, "/g/ngw-1/log"))
    tab.picture(PICTURES / "console-narrow.png", 700)
