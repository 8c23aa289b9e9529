"""The report of an evaluation and the built documentation in a real browser; skipped where there is none."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from discern.data.processed import DISCERNData
from discern.experiment.evaluate import evaluate

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
_CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_WIDTHS = {"laptop": 1280, "phone": 390}

_SCROLLING = """
    [...document.querySelectorAll('pre, table, div')]
        .filter(e => e.scrollWidth > e.clientWidth + 1 && e.clientWidth && getComputedStyle(e).overflowX !== 'visible')
        .map(e => e.innerText.slice(0, 80))
"""

pytestmark = pytest.mark.skipif(_CHROMIUM is None, reason="no Chromium")


@dataclass
class Page:
    """What the browser found out about a page.

    Attributes:
        complaints: Errors on the console and uncaught exceptions.
        requests: Addresses that were asked for.
        broken: Pictures that do not show.
        pictures: Number of pictures.
        overflow: Device -> how many pixels the page is wider than the window.
        scrolling: Device -> parts of the page that scroll sideways.
        smallest_text: Device -> size in pixels of the smallest text in a paragraph.
    """

    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    pictures: int = 0
    overflow: dict[str, int] = field(default_factory=dict)
    scrolling: dict[str, list[str]] = field(default_factory=dict)
    smallest_text: dict[str, float] = field(default_factory=dict)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a running browser."""
    profile = tmp_path_factory.mktemp("profile")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--no-first-run"]
    # Nothing is to be had from outside: a page that needs it would show.
    options += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen([str(_CHROMIUM), *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port = profile / "DevToolsActivePort"
        for _ in range(600):
            if port.is_file() and port.read_text().strip():
                break
            time.sleep(0.1)
        yield int(port.read_text().split()[0])
    finally:
        process.terminate()
        process.wait(timeout=30)


def look_at(port: int, path: Path) -> Page:
    """Open a file in the browser."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/json/new?about:blank", method="PUT")
    with urllib.request.urlopen(request) as answer:
        address = json.load(answer)["webSocketDebuggerUrl"]
    return asyncio.run(_look(address, path.resolve().as_uri()))


async def _look(address: str, url: str) -> Page:
    from tornado.websocket import websocket_connect

    page, number, loaded = Page(), 0, False
    connection = await websocket_connect(address)

    def note(event: dict[str, Any]) -> None:
        nonlocal loaded
        parameters = event.get("params", {})
        match event.get("method"):
            case "Network.requestWillBeSent":
                page.requests.append(parameters["request"]["url"])
            case "Runtime.exceptionThrown":
                page.complaints.append(parameters["exceptionDetails"]["text"])
            case "Runtime.consoleAPICalled" if parameters["type"] == "error":
                page.complaints.append(str(parameters["args"]))
            case "Log.entryAdded" if parameters["entry"]["level"] == "error":
                page.complaints.append(parameters["entry"]["text"])
            case "Page.loadEventFired":
                loaded = True

    async def receive() -> dict[str, Any]:
        message = await asyncio.wait_for(connection.read_message(), 60)
        event = json.loads(message)
        note(event)
        return event

    async def call(method: str, **parameters: Any) -> dict[str, Any]:
        nonlocal number
        number += 1
        await connection.write_message(json.dumps({"id": number, "method": method, "params": parameters}))
        while (event := await receive()).get("id") != number:
            pass
        return event["result"]

    async def evaluated(expression: str) -> Any:
        answer = await call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        return answer["result"].get("value")

    for domain in ("Page", "Runtime", "Log", "Network"):
        await call(f"{domain}.enable")
    await call("Page.navigate", url=url)
    while not loaded:
        await receive()
    images = "Promise.all([...document.images].map(i => {i.loading = 'eager'; return i.decode().catch(() => 0)}))"
    await evaluated(f"{images}.then(() => 1)")
    page.pictures = await evaluated("document.images.length")
    page.broken = await evaluated("[...document.images].filter(i => !i.naturalWidth).map(i => i.src.slice(0, 80))")
    for device, width in _WIDTHS.items():
        is_phone = device == "phone"
        await call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=is_phone)
        page.overflow[device] = await evaluated("document.documentElement.scrollWidth - window.innerWidth")
        page.scrolling[device] = await evaluated(_SCROLLING)
        page.smallest_text[device] = await evaluated(
            "Math.min(...[...document.querySelectorAll('p, li')].map(e => parseFloat(getComputedStyle(e).fontSize)))"
        )
    connection.close()
    return page


def _assert_good(page: Page, pictures: int) -> None:
    assert page.complaints == []
    assert [url for url in page.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert page.broken == []
    assert page.pictures >= pictures
    assert all(pixels <= 0 for pixels in page.overflow.values()), page.overflow
    assert not any(page.scrolling.values()), page.scrolling
    assert all(size >= 11 for size in page.smallest_text.values()), page.smallest_text


def test_report_of_an_evaluation(browser: int, original_experiment: Path) -> None:
    genes = DISCERNData.from_folder(original_experiment, 32).var_names[:2]
    report = evaluate(original_experiment, reference="celseq2", genes=list(genes))[0]

    _assert_good(look_at(browser, report), pictures=3)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation, built as `make docs` builds it."""
    pytest.importorskip("sphinx")
    target = tmp_path_factory.mktemp("html")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-b",
        "html",
        str(ROOT / "docs"),
        str(target),
    ]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    return target


def test_documentation(browser: int, built: Path) -> None:
    pages = {"index": 1, "method": 0, "troubleshooting": 0, "generated/parameters": 0, "commands": 0, "api": 0}
    for name, pictures in (pages | {"generated/tutorial": 3}).items():
        _assert_good(look_at(browser, built / f"{name}.html"), pictures)


def test_a_bad_page_is_seen(browser: int, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<script src='https://example.org/x.js'></script><img src='absent.png'><p style='font-size: 6px'>small</p>"
        "<div style='width: 3000px'>wide</div><script>undefined_function()</script>"
    )

    page = look_at(browser, bad)

    assert any("ERR_NAME_NOT_RESOLVED" in complaint for complaint in page.complaints)
    assert any("Uncaught" in complaint for complaint in page.complaints)
    assert "https://example.org/x.js" in page.requests
    assert len(page.broken) == 1
    assert page.overflow["laptop"] > 1000
    assert page.smallest_text["laptop"] == 6
