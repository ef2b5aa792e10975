"""The third-party tracking server `openwandb` on loopback, and W&B's own programs, for the checks beside this file."""

import json
import os
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

from packages import environment_with

PACKAGES = ["wandb==0.31.0", "openwandb==0.5.25"]


def environment_with_packages() -> Path:
    """The folder of programs, or the end of this one where the packages cannot be had."""
    return environment_with(PACKAGES, "wandb-check")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def request(url: str, body: dict | None = None, token: str | None = None) -> bytes:
    headers = {"Content-Type": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    data = None if body is None else json.dumps(body).encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return opener.open(urllib.request.Request(url, data, headers), timeout=30).read()


def wait_for(what: str, done, seconds: float = 60):
    deadline = time.monotonic() + seconds
    while True:
        try:
            if found := done():
                return found
        except OSError:
            pass
        assert time.monotonic() < deadline, f"waited too long for {what}"
        time.sleep(0.05)


class Server:
    """`openwandb` on loopback, with a user of its own."""

    def __init__(self, programs: Path, folder: Path):
        self.data, self.url = folder / "server", f"http://127.0.0.1:{free_port()}"
        port = self.url.rsplit(":", 1)[1]
        variables = os.environ | {"OPENWANDB_DATA_DIR": str(self.data), "HOME": str(folder)}
        command = [programs / "openwandb", "serve", "--host", "127.0.0.1", "--port", port, "--data-dir", self.data]
        self.log = open(folder / "server.log", "w")
        self.process = subprocess.Popen(list(map(str, command)), env=variables, stdout=self.log, stderr=self.log)
        user = {"username": "checker", "password": "on-loopback-only"}
        answer = wait_for("the server", lambda: request(f"{self.url}/api/v2/auth/register", user))
        token = json.loads(answer)["token"]
        answer = request(f"{self.url}/api/v2/settings/api-keys", {"name": "check"}, token)
        self.key = json.loads(answer)["api_key"]["key"]

    def run(self, run: str) -> dict:
        return json.loads(request(f"{self.url}/api/v2/runs/{run}"))["run"]

    def history(self, run: str) -> list[dict]:
        """The rows as they came: the server keeps the lines."""
        files = list(self.data.glob(f"files/*/*/{run}/wandb-history.jsonl"))
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    def file(self, run: str, name: str) -> bytes:
        [file] = self.data.glob(f"files/*/*/{run}/{name}")
        return file.read_bytes()

    def stop(self):
        self.process.terminate()
        self.process.wait()
        self.log.close()


def journal(project: Path) -> tuple[str, list[dict]]:
    """Id and rows of the one run that a project tracked."""
    [head] = [path for path in project.glob("runs/*/tracking/run.json") if not path.parent.is_symlink()]
    lines = head.with_name("history.jsonl").read_text().splitlines()
    # Values are kept as JSON text.
    rows = [{key: json.loads(text) for key, text in json.loads(line)["fields"].items()} for line in lines]
    return json.loads(head.read_text())["id"], rows


def acknowledged(project: Path) -> int:
    """Rows of history that the server has answered for."""
    return sum(json.loads(path.read_text())["history"] for path in project.glob("runs/*/tracking/sent.json"))


def same_rows(arrived: list[dict], expected: list[dict]):
    """Every row once, in order. NaN is like no other number, not even itself, so texts are compared."""
    text = lambda rows: [json.dumps(row, sort_keys=True) for row in rows]
    assert text(arrived) == text(expected), f"{text(arrived)}\n{text(expected)}"
