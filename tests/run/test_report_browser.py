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
        message = {"id": self.last, "method": method, "params": params}
        os.write(self.mouth, json.dumps(message | ({"sessionId": self.session} if self.session else {})).encode() + b"\0")
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
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        self.theme(dark)
        self.call("Page.navigate", url="about:blank")
        self.events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        deadline = time.monotonic() + self.patience
        while self.ask("document.readyState + location.protocol") != "completefile:":
            assert time.monotonic() < deadline, f"{page} was not loaded within {self.patience:g} s."
        self.settle()

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
