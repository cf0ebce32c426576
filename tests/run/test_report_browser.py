"""The report in a real browser: headless Chromium, spoken to over its DevTools pipe with the standard library alone."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from isopath.run import report

pytestmark = pytest.mark.browser
PLOTS = ["history", "accuracy", "plane", "spectrum"]
OFFLINE = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
           "--disable-background-networking", "--disable-component-update", "--disable-extensions",
           "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe")  # fmt: skip


def _runs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("report_runs", Path(__file__).with_name("test_report.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


runs = _runs()


class Chromium:
    """One browser. Its DevTools speak on descriptors 3 and 4: JSON messages, each ended by a zero byte."""

    def __init__(self, profile: Path, patience: float = 60.0) -> None:
        program = os.environ.get("CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
        if not shutil.which(program):
            pytest.fail(f"The browser test needs Chromium, and {program} is not there: install Debian's chromium "
                        "(apt-get install chromium) or name one in $CHROMIUM.", pytrace=False)  # fmt: skip
        (hear, self.mouth), (self.ear, speak) = os.pipe(), os.pipe()
        relay = f'exec "$@" 3<&{hear} 4>&{speak}'
        self.process = subprocess.Popen(
            ["bash", "-c", relay, "bash", program, *OFFLINE, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(hear, speak), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(hear)
        os.close(speak)
        self.patience, self.last, self.session, self.rest = patience, 0, "", b""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result; what arrives in between is kept as events."""
        self.last += 1
        message: dict[str, Any] = {"id": self.last, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.mouth, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self.last:
            self.events.append(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.ear], [], [], self.patience)
            part = os.read(self.ear, 1 << 20) if ready else b""
            assert part, f"Chromium said nothing for {self.patience:g} s or ended (exit status {self.process.poll()})."
            self.rest += part
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def open(self, page: Path, width: int, dark: bool = False) -> None:
        """Show a file in a fresh window of that width and theme, and wait until it is loaded and painted."""
        self.resize(width)
        self.theme(dark)
        self.call("Page.navigate", url="about:blank")
        self.events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        deadline = time.monotonic() + self.patience
        while self.ask("document.readyState + location.protocol") != "completefile:":
            assert time.monotonic() < deadline, f"{page} was not loaded within {self.patience:g} s."
        self.settle()

    def resize(self, width: int) -> None:
        window = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **window)

    def theme(self, dark: bool) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def settle(self) -> None:
        """Wait for two frames, so that what a script has just changed is laid out."""
        self.ask("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def ask(self, script: str) -> Any:
        """The value of a script in the page, or of its promise."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def photograph(self, target: Path) -> Path:
        """A picture of the whole page."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        target.write_bytes(base64.b64decode(data))
        return target

    def complaints(self) -> list[str]:
        """Everything in the console, every exception, and every request but that for the page itself."""
        self.settle()
        watched = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        said = [json.dumps(event) for event in self.events if event.get("method") in watched]
        asked = [event["params"]["request"]["url"] for event in self.events
                 if event.get("method") == "Network.requestWillBeSent"]  # fmt: skip
        return said + [url for url in asked[1:] if not url.startswith("data:")] + ([] if asked else ["no page request"])

    def close(self) -> None:
        self.session = ""
        try:
            self.call("Browser.close")
            self.process.wait(10)
        except (AssertionError, OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        os.close(self.mouth)
        os.close(self.ear)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    browser = Chromium(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report.write(runs.write_run(tmp_path_factory.mktemp("run")))


# The ids of the plots that hold ink: every trace with points has a line or marks of a visible size.
DRAWN = """[...document.querySelectorAll(".plot")].filter(plot => {
  const marks = [...plot.querySelectorAll(".scatterlayer .trace")].map(
    trace => [...trace.querySelectorAll(".js-line, .point")].some(mark => mark.getAttribute("d")?.length > 4));
  const box = plot.querySelector(".main-svg")?.getBoundingClientRect();
  return marks.length && marks.every(Boolean) && box.width > 250 && box.height > 250;
}).map(plot => plot.id)"""
OVERFLOW = """[...document.querySelectorAll("main *")].filter(part => !part.closest("pre, svg, .js-plotly-plot")
  && part.getBoundingClientRect().right > innerWidth + 1).map(part => part.outerHTML.slice(0, 80))"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1440, 1024, 768, 390])
def test_every_plot_is_drawn_and_the_console_is_empty(chromium: Chromium, page: Path, width: int, dark: bool) -> None:
    chromium.open(page, width, dark)
    assert chromium.ask(DRAWN) == PLOTS
    assert chromium.complaints() == []
    assert chromium.ask("document.documentElement.scrollWidth") == width and chromium.ask(OVERFLOW) == []


def test_the_tolerance_and_the_rejected_attempts_are_on_the_page(chromium: Chromium, page: Path) -> None:
    chromium.open(page, 1440)
    words = chromium.ask("document.getElementById('history').textContent")
    for text in ("tolerance 0.01", "accepted (112)", "rejected: drift (11)", "rejected: objective (8)", "attempt"):
        assert text in words
    assert chromium.ask("document.querySelectorAll('#history .shapelayer path').length") == 2


def test_the_plots_follow_the_theme_and_the_window(chromium: Chromium, page: Path) -> None:
    look = """JSON.stringify([...document.querySelectorAll(".js-line, .xtick text, .legendtext")].map(
      part => { const style = getComputedStyle(part); return [style.stroke, style.fill] }))"""
    chromium.open(page, 1440, dark=False)
    light = chromium.ask(look)
    chromium.theme(dark=True)
    chromium.settle()
    dark = chromium.ask(look)
    assert "rgb(10, 102, 173)" in light and "rgb(95, 180, 243)" in dark and "rgb(10, 102, 173)" not in dark
    chromium.theme(dark=False)
    chromium.settle()
    assert chromium.ask(look) == light
    chromium.resize(390)
    wide = "Math.max(...[...document.querySelectorAll('.main-svg')].map(plot => plot.getBoundingClientRect().right))"
    deadline = time.monotonic() + 10
    while chromium.ask(wide) > 390 and time.monotonic() < deadline:
        chromium.settle()
    assert chromium.ask(wide) <= 390 and chromium.ask(DRAWN) == PLOTS
    assert chromium.complaints() == []


def test_unusual_runs_are_drawn_without_a_complaint(chromium: Chromium, tmp_path: Path) -> None:
    evil = "<script>document.title = 'stolen'</script><img src=x onerror=\"document.title = 'stolen'\">"
    none = [row | {"accepted": False, "why": ("drift", evil)[row["attempt"] % 2]} for row in runs.attempts(9)]
    long = "x" * 300
    table = {"columns": runs.COLUMNS, "rows": [[long, *[0.5] * 7, long]]}
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "run.json").write_text(json.dumps({"title": evil}))
    for folder, plots in (
        (runs.write_run(tmp_path / "one", runs.attempts(1, reject=0.0), spectrum=[2.0]), PLOTS),
        (runs.write_run(tmp_path / "none", none, along={"step": [0, 3], "series": {evil: [0.5, None]}}), PLOTS),
        (runs.write_run(tmp_path / "many", runs.attempts(10_000), plane=None), ["history", "accuracy", "spectrum"]),
        (runs.write_run(tmp_path / "long", reason=long, status=long, drift_kind=long, table=table), PLOTS),
        (tmp_path / "begun", []),
    ):
        chromium.open(report.write(folder), 390)
        assert chromium.ask(DRAWN) == plots and chromium.complaints() == [], folder.name
        assert chromium.ask("document.documentElement.scrollWidth") == 390 and chromium.ask(OVERFLOW) == [], folder.name
        assert chromium.ask("document.title").endswith("isopath")
