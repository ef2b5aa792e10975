#!/usr/bin/env python3
"""Opens pages in a headless Chromium at desktop and phone width, light and dark.

    scripts/check-pages.py [--pictures FOLDER] [--ask QUESTION] PAGE…

A page is a file (report.html, compare.html) or the address of `flow serve`; there, QUESTION is asked and both answers are
waited for. Fails on a console message, an exception, a request that a page of its own may not make, and where a page is
wider than the window. Without Chromium it says so and ends with 77, as test harnesses know a skipped test.
"""

import argparse
import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Width and height of the window in CSS pixels, and device pixels to each.
SCREENS = {"desktop": (1280, 900, 1), "phone": (390, 844, 2)}
SCHEMES = ["light", "dark"]
SECONDS = 900


class Browser:
    """Chromium by its DevTools protocol over a pipe: JSON texts that end with a zero byte."""

    def __init__(self, program: str, profile: str):
        to_browser, self.out = os.pipe()
        self.into, from_browser = os.pipe()
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", f"--user-data-dir={profile}"]
        flags += ["--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe", "about:blank"]
        # Chromium reads descriptor 3 and writes 4.
        start = f'exec "$@" 3<&{to_browser} 4>&{from_browser} 2>/dev/null'
        command = ["bash", "-c", start, "bash", program, *flags]
        self.process = subprocess.Popen(command, pass_fds=(to_browser, from_browser))
        os.close(to_browser)
        os.close(from_browser)
        self.buffer, self.last, self.events = b"", 0, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = None
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ["Page", "Runtime", "Log", "Network"]:
            self.call(f"{domain}.enable")

    def receive(self) -> dict:
        while b"\0" not in self.buffer:
            more = os.read(self.into, 1 << 16)
            if not more:
                raise RuntimeError("Chromium has ended")
            self.buffer += more
        text, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(text)

    def call(self, method: str, **params) -> dict:
        self.last += 1
        message = {"id": self.last, "method": method, "params": params}
        if getattr(self, "session", None):
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == self.last:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self.events.append(answer)

    def value(self, expression: str):
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"].get("description", "an exception"))
        return answer["result"].get("value")

    def wait_until(self, expression: str, what: str) -> None:
        deadline = time.monotonic() + SECONDS
        while not self.value(expression):
            if time.monotonic() > deadline:
                raise RuntimeError(f"waited {SECONDS} s for {what}")
            time.sleep(0.1)

    def look(self, width: int, height: int, scale: int, scheme: str) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=width < 600)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def open(self, address: str) -> None:
        self.events.clear()
        self.call("Page.navigate", url=address)
        self.wait_until("document.readyState === 'complete' && location.href !== 'about:blank'", address)

    def complaints(self, address: str) -> list[str]:
        """What went wrong on the page, or was asked of anything but the page's own server."""
        found = []
        own = address if address.startswith("file:") else "/".join(address.split("/")[:3])
        for event in self.events:
            kind, params = event.get("method"), event.get("params", {})
            if kind == "Log.entryAdded":
                found.append(params["entry"]["text"])
            elif kind == "Runtime.consoleAPICalled":
                found.append(" ".join(str(part.get("value", part.get("description"))) for part in params["args"]))
            elif kind == "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                found.append(details.get("exception", {}).get("description", details["text"]))
            elif kind == "Network.requestWillBeSent":
                url = params["request"]["url"]
                if not url.startswith(own) and not url.startswith("data:"):
                    found.append(f"a request to {url}")
        return found

    def picture(self, file: Path, whole: bool) -> None:
        # A page that scrolls under a fixed form is taken as one sees it.
        image = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(image["data"]))

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


def ask(browser: Browser, question: str) -> None:
    """Types a question into the chat page and waits for the answers of both models."""
    browser.wait_until("document.getElementById('title').textContent !== ''", "the page to know its server")
    browser.value(f"document.getElementById('question').value = {json.dumps(question)}; document.getElementById('form').requestSubmit()")
    browser.wait_until("document.querySelectorAll('.answer').length === 2 && !document.getElementById('send').disabled", "the answers")
    bad = browser.value("[...document.querySelectorAll('.answer .bad')].map(box => box.textContent).join('; ')")
    if bad:
        raise RuntimeError(f"the page shows: {bad}")
    if browser.value("[...document.querySelectorAll('.answer .text')].some(box => box.textContent.trim() === '')"):
        raise RuntimeError("an answer on the page is empty")


def check(browser: Browser, page: str, question: str | None, pictures: Path | None) -> list[str]:
    is_file = "://" not in page
    path = Path(page).resolve()
    address = path.as_uri() if is_file else page
    name = f"{path.parent.name}-{path.stem}" if is_file else "chat"
    found = []
    if is_file and "default-src 'none'" not in path.read_text().replace("&#39;", "'").replace("&#x27;", "'"):
        found.append(f"{page} has no policy against requests")
    width, height, scale = SCREENS["desktop"]
    browser.look(width, height, scale, SCHEMES[0])
    browser.open(address)
    try:
        if question and not is_file:
            ask(browser, question)
    except RuntimeError as error:
        found.append(f"{page}: {error}")
    for scheme in SCHEMES:
        for screen, (width, height, scale) in SCREENS.items():
            browser.look(width, height, scale, scheme)
            wide = browser.value("document.documentElement.scrollWidth")
            if wide > width:
                found.append(f"{page} ({scheme}, {screen}) is {wide} wide in a window of {width}")
            if pictures:
                browser.picture(pictures / f"{name}-{scheme}-{screen}.png", whole=is_file)
    found += [f"{page}: {complaint}" for complaint in browser.complaints(address)]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="keep what was seen as PNG")
    parser.add_argument("--ask", metavar="QUESTION", help="what to ask at the address of a server")
    parser.add_argument("pages", nargs="+", metavar="PAGE")
    arguments = parser.parse_args()
    program = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)
    if program is None:
        print("skipped: no Chromium here", file=sys.stderr)
        return 77
    if arguments.pictures:
        arguments.pictures.mkdir(parents=True, exist_ok=True)
    found = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(program, profile)
        try:
            for page in arguments.pages:
                found += check(browser, page, arguments.ask, arguments.pictures)
        finally:
            browser.close()
    for complaint in found:
        print(complaint, file=sys.stderr)
    if not found:
        print(f"{len(arguments.pages)} {'page is' if len(arguments.pages) == 1 else 'pages are'} fine")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
