"""The pages in a real browser: axe-core finds no barrier, the keyboard is enough, and nothing is loaded or run."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.pages.chromium import NAMES, Tab
from tests.e2e.pages.guests import holds, link
from tidings.web.server import serve

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = "axe-core@4.14.1"
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22a", "wcag22aa", "best-practice"]
AXE = """axe.run({runOnly: %s, resultTypes: ['violations', 'incomplete', 'passes']}).then(found => JSON.parse(
JSON.stringify({violations: found.violations, incomplete: found.incomplete, passes: found.passes.map(p => p.id)})))"""


@pytest.fixture(scope="module")
def axe() -> str:
    """axe-core's script, installed once into .tools/npm."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed: axe-core cannot be had")
    folder = ROOT / ".tools" / "npm"
    script = folder / "node_modules" / "axe-core" / "axe.min.js"
    if not script.exists():
        command = [npm, "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--ignore-scripts", PACKAGE]
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
        if done.returncode != 0:
            pytest.skip(f"npm cannot install axe-core: {done.stderr[-300:]}")
    return script.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def browser(debian: Any) -> str:
    """The program."""
    found: str = debian("chromium", *NAMES)
    return found


@pytest.fixture
async def url(shop: Any) -> AsyncIterator[str]:
    """The same application, on a socket."""
    async with serve(shop.api.front, "127.0.0.1", 0, timedelta(seconds=5)) as url:
        yield url


async def inspect(tab: Tab, axe: str, what: str) -> None:
    """No barrier is on the page that is open, and axe did look at the contrast."""
    assert await tab.run("document.scripts.length") == 0
    await tab.run(axe)
    found = await tab.run(AXE % TAGS)
    for kind in ("violations", "incomplete"):
        told = [(one["id"], [node["html"] for node in one["nodes"]]) for one in found[kind]]
        assert told == [], f"{what}: {kind}"
    if what != "/p/nonsense":  # too few letters there in a script that this machine may have no font for
        assert "color-contrast" in found["passes"], what
    assert {"document-title", "html-has-lang"} <= set(found["passes"]), what


@pytest.mark.parametrize(("language", "scheme"), [("en", "light"), ("de", "dark"), ("fr", "light"), ("ar", "dark")])
async def test_the_pages_have_no_barriers(
    browser: str, axe: str, shop: Any, url: str, language: str, scheme: str
) -> None:
    await shop.put("/api/v1/project/settings", {"address": "Shop GmbH\nVienna"})
    shop.api.clock.passed = timedelta(seconds=6)
    choose, leave = link(shop, "p", user_id="ada"), link(shop, "u", user_id="ada", category="news")
    never = link(shop, "u", user_id="ada", category="security")
    async with Tab.start(browser) as tab:
        await tab.ask("Network.enable")
        await tab.ask("Network.setExtraHTTPHeaders", headers={"accept-language": language})
        await tab.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        for path in (choose, leave, "/p/nonsense"):
            await tab.open(url + path)
            assert await tab.run("document.documentElement.lang") == language
            await inspect(tab, axe, path)
        for path in (leave, never):
            await tab.open(url + path)
            async with tab.leaving():
                await tab.run("document.querySelector('button').click()")
            await inspect(tab, axe, f"after {path}")

        await tab.open(url + choose)
        assert await tab.run("'quiet_start' in document.forms[0].elements")
        await tab.run("document.getElementById('quiet_start').value = '22:00'")
        async with tab.leaving():
            await tab.run("document.querySelector('button').click()")
        assert await tab.run("document.querySelector('[role=alert] a').hash") == "#quiet_end"
        await inspect(tab, axe, "with a fault")
        await tab.run("document.getElementById('quiet_end').value = '07:00'")
        async with tab.leaving():
            await tab.run("document.querySelector('button').click()")
        assert await tab.run("document.querySelectorAll('[role=status] li').length") == 1
        await inspect(tab, axe, "saved")

        # At the width of a phone, or magnified four times (WCAG 1.4.10), nothing has to be scrolled sideways.
        await tab.ask("Emulation.setDeviceMetricsOverride", width=320, height=640, deviceScaleFactor=1, mobile=False)
        assert await tab.run("document.documentElement.scrollWidth") <= 320
        smallest = await tab.run(
            "Math.min(...[...document.querySelectorAll('input:not([type=hidden]), select, button, a')]"
            ".map(e => Math.min(e.getBoundingClientRect().width, e.getBoundingClientRect().height)))"
        )
        assert smallest >= 24, "WCAG 2.5.8"
        complaints = [text for text in tab.log if "status of 4" not in text]  # the statuses that are asked for here
        assert complaints == []


async def test_the_keyboard_is_enough(browser: str, shop: Any, url: str) -> None:
    async with Tab.start(browser) as tab:
        await tab.open(url + link(shop, "p", user_id="ada"))
        assert await tab.run("getComputedStyle(document.querySelector('button')).fontWeight") == "600", "no style"
        reached: list[str] = []
        for _ in range(40):
            await tab.press("Tab")
            at = "document.activeElement"
            assert await tab.run(f"getComputedStyle({at}).outlineWidth") == "3px", f"no focus is seen after {reached}"
            here = await tab.run(f"{at}.value === '' ? {at}.tagName : ({at}.name + '=' + {at}.value)")
            reached.append(here)
            if here == "on=email:news":
                await tab.press(" ")
            if here == "often:orders=instant":
                await tab.press("ArrowDown")
            if await tab.run(f"{at}.tagName") == "BUTTON":
                break
        else:
            raise AssertionError(f"the button was not reached: {reached}")
        assert reached[:2] == ["on=email:general", "on=sms:general"]
        async with tab.leaving():
            await tab.press("Enter")
        lines = await tab.run("[...document.querySelectorAll('[role=status] li')].map(line => line.textContent)")
        assert lines == ["News <b> · E-mail: off", "Orders · How often: Collected, once an hour"]
    assert not (await holds(shop, "news"))["email"]


async def test_without_scripts_the_pages_work(browser: str, shop: Any, url: str) -> None:
    async with Tab.start(browser) as tab:
        await tab.ask("Emulation.setScriptExecutionDisabled", value=True)
        await tab.open(url + link(shop, "u", user_id="ada", category="news"))
        for _ in range(5):
            await tab.press("Tab")
            if await tab.run("document.activeElement.tagName") == "BUTTON":
                break
        async with tab.leaving():
            await tab.press("Enter")
        assert await tab.run("document.querySelector('h1').textContent") == "You are unsubscribed"
    assert not (await holds(shop, "news"))["email"]
