"""A real browser without a window, driven over two pipes in its own debugging protocol.

Chromium reads commands from file descriptor 3 and writes to 4, JSON objects with a zero byte after
each (`--remote-debugging-pipe`): no driver, no port, no library.
"""

import base64
import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

EXECUTABLE = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
SECONDS = 60.0  # before something that does not happen is an error


class Browser:
    """One tab."""

    def __init__(self) -> None:
        assert EXECUTABLE is not None
        self._folder = tempfile.TemporaryDirectory()
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()

        def connect() -> None:
            # First away from 3 and 4, lest one take the other's place.
            high = [os.dup(theirs_in), os.dup(theirs_out)]
            for number, descriptor in zip((3, 4), high, strict=True):
                os.dup2(descriptor, number)

        self._process = subprocess.Popen(
            [
                EXECUTABLE,
                "--headless=new",
                "--no-sandbox",  # does not start as root otherwise, as in a container
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--no-first-run",
                "--force-device-scale-factor=1",
                "--remote-debugging-pipe",
                f"--user-data-dir={self._folder.name}",
                "about:blank",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=connect,
            close_fds=False,
            start_new_session=True,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._ids = itertools.count(1)
        self._held = b""
        self._session = ""
        self.requested: list[str] = []
        """The address of everything that was loaded."""
        self.problems: list[str] = []
        """What the page complained about: exceptions, refused loads, errors in its log."""
        targets = self.command("Target.getTargets")["targetInfos"]
        page = next(target for target in targets if target["type"] == "page")
        attached = {"targetId": page["targetId"], "flatten": True}
        self._session = self.command("Target.attachToTarget", **attached)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.command(f"{domain}.enable")
        # A tab in the background has no focus otherwise.
        self.command("Emulation.setFocusEmulationEnabled", enabled=True)

    def close(self) -> None:
        with contextlib.suppress(OSError, AssertionError):
            self._session = ""
            self.command("Browser.close")
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        os.close(self._out)
        with contextlib.suppress(OSError):  # helpers may still be writing their last
            self._folder.cleanup()

    def command(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for what comes of it."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, answer["error"]
                result: dict[str, Any] = answer["result"]
                return result

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + SECONDS
        while b"\0" not in self._held:
            left = deadline - time.monotonic()
            assert left > 0 and select.select([self._in], [], [], left)[0], "no answer"
            data = os.read(self._in, 1 << 20)
            assert data, "the browser is gone"
            self._held += data
        raw, _, self._held = self._held.partition(b"\0")
        message: dict[str, Any] = json.loads(raw)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, method: str | None, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.problems.append(details.get("exception", details).get("description", str(details)))
        elif method == "Network.requestWillBeSent":
            self.requested.append(params["request"]["url"])
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.problems.append(params["entry"]["text"])

    # ----------------------------------------------------------------------------------------------

    def open(self, url: str) -> None:
        self.command("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        how = {"returnByValue": True, "awaitPromise": True, "userGesture": True}
        result = self.command("Runtime.evaluate", expression=script, **how)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + SECONDS
        while not self.run(f"(() => {{ try {{ return Boolean({condition}) }} catch {{}} }})()"):
            assert time.monotonic() < deadline, f"{condition} never came true; {self.problems}"
            time.sleep(0.02)

    def text(self, selector: str) -> str:
        return str(self.run(f"document.querySelector({json.dumps(selector)}).innerText"))

    def type(self, text: str) -> None:
        self.command("Input.insertText", text=text)

    def press(
        self, key: str, *, alt: bool = False, ctrl: bool = False, shift: bool = False
    ) -> None:
        codes = {"Enter": 13, "Tab": 9, "Escape": 27, " ": 32, "ArrowRight": 39, "ArrowDown": 40}
        code = codes.get(key, ord(key[0].upper()))
        name = f"Key{key.upper()}" if key.isalpha() and len(key) == 1 else key
        event = {
            "key": key,
            "code": "Space" if key == " " else name,
            "windowsVirtualKeyCode": code,
            "modifiers": alt + 2 * ctrl + 8 * shift,
        }
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 and not (alt or ctrl) else "")
        down = {"type": "keyDown", "text": text} if text else {"type": "rawKeyDown"}
        self.command("Input.dispatchKeyEvent", **event, **down)
        self.command("Input.dispatchKeyEvent", **event, type="keyUp")

    def size(self, width: int, height: int, *, mobile: bool = False) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 2 if mobile else 1}
        self.command("Emulation.setDeviceMetricsOverride", **metrics, mobile=mobile)
        self.command("Emulation.setTouchEmulationEnabled", enabled=mobile)

    def dark(self, dark: bool) -> None:
        value = "dark" if dark else "light"
        features = [{"name": "prefers-color-scheme", "value": value}]
        self.command("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, path: Path) -> None:
        shot = self.command("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))
