"""Tracking against programs by others: the third-party server `openwandb`, and W&B's own `wandb sync`.

    python3 tests/wandb_check.py target/debug/flow

Makes a virtual environment under FLOW_HOME. Everything it talks to listens on 127.0.0.1, but for the package index, once;
where that cannot be reached it says so and ends with code 0.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

PACKAGES = ["wandb==0.31.0", "openwandb==0.5.25"]

# Waits for the file `go`, so that it can be killed in the middle.
PIPELINE = """\
name: tracked
stages:
  rows: { uses: source, with: { path: rows.csv } }
  answers: { uses: sql, inputs: { rows: rows.rows }, with: { query: "select id, word as reference, word as prediction from rows" } }
  score: { uses: score, inputs: { rows: answers } }
  pairs: { uses: sql, inputs: { rows: score.rows }, with: { query: "select id, 0.0::double as base, f1 as tuned from rows" } }
  gain: { uses: bootstrap, inputs: { rows: pairs }, with: { metrics: { f1: [base, tuned] }, resamples: 100 } }
  wait: { uses: command, inputs: { gain: gain }, with: { run: 'touch ${FLAGS}/started; while [ ! -e ${FLAGS}/go ]; do sleep 0.05; done; echo > $OUT/x' } }
  last: { uses: command, inputs: { wait: wait }, with: { run: 'echo > $OUT/x' } }
"""
ROWS = "id,word\na,one\nb,two\nc,three\n"


def environment_with_packages() -> Path:
    """The folder of programs, or the end of this one where the packages cannot be had."""
    home = Path(os.environ.get("FLOW_HOME") or Path.home() / ".cache/flow")
    folder = home / "wandb-check"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    install = [str(folder / "bin/pip"), "install", "--quiet", "--retries", "1", *PACKAGES]
    result = subprocess.run(install, capture_output=True, text=True)
    if result.returncode != 0:
        last = (result.stderr.strip().splitlines() or ["pip failed"])[-1]
        print(f"skipped: {' and '.join(PACKAGES)} cannot be installed: {last}")
        sys.exit(0)
    return folder / "bin"


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


class Project:
    def __init__(self, folder: Path, flow: Path, server: Server, mode: str):
        self.folder, self.flow_program = folder, flow
        (folder / "pipelines").mkdir(parents=True)
        (folder / "pipelines/p.yaml").write_text(PIPELINE)
        (folder / "rows.csv").write_text(ROWS)
        (folder / "flags").mkdir()
        self.variables = os.environ | {
            "FLAGS": str(folder / "flags"),
            "HOME": str(folder),
            "WANDB_BASE_URL": server.url,
            "WANDB_API_KEY": server.key,
            "WANDB_MODE": mode,
        }

    def start(self, *arguments: str) -> subprocess.Popen:
        command = [str(self.flow_program), *arguments]
        return subprocess.Popen(command, cwd=self.folder, env=self.variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def flow(self, *arguments: str) -> str:
        process = self.start(*arguments)
        out, errors = process.communicate()
        assert process.returncode == 0, f"flow {' '.join(arguments)}: {errors}"
        print("".join(f"    {line}\n" for line in (out + errors).splitlines()), end="")
        return out

    def let_go(self):
        (self.folder / "flags/go").touch()

    def acknowledged(self) -> int:
        return sum(json.loads(path.read_text())["history"] for path in self.folder.glob("runs/*/tracking/sent.json"))

    def journal(self) -> tuple[str, list[dict]]:
        """Id and rows of the one tracked run."""
        [head] = [path for path in self.folder.glob("runs/*/tracking/run.json") if not path.parent.is_symlink()]
        lines = head.with_name("history.jsonl").read_text().splitlines()
        # Values are kept as JSON text.
        rows = [{key: json.loads(text) for key, text in json.loads(line)["fields"].items()} for line in lines]
        return json.loads(head.read_text())["id"], rows


def same_rows(arrived: list[dict], expected: list[dict]):
    """Every row once, in order. NaN is like no other number, not even itself, so texts are compared."""
    text = lambda rows: [json.dumps(row, sort_keys=True) for row in rows]
    assert text(arrived) == text(expected), f"{text(arrived)}\n{text(expected)}"


def a_real_run_killed_once(flow: Path, server: Server, folder: Path):
    project = Project(folder, flow, server, "online")
    process = project.start("run", "pipelines/p.yaml")
    wait_for("the node that waits", (folder / "flags/started").exists)
    # Some rows are acknowledged, others may wait for the next request. Killed between the server's commit and its answer, the
    # rows of that request would be there twice: this server ignores offsets, by which others know them again.
    wait_for("the first rows", lambda: project.acknowledged() > 0)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    project.let_go()
    project.flow("run", "pipelines/p.yaml")
    run, rows = project.journal()
    same_rows(server.history(run), rows)
    assert [row["_step"] for row in rows] == list(range(len(rows)))
    assert sum("score/f1" in row for row in rows) == 1
    shown = server.run(run)
    assert shown["state"] == "finished", shown["state"]
    assert shown["summary"]["score/f1"] == 100, shown["summary"]
    assert "pipeline" in shown["config"], shown["config"]
    assert server.file(run, "pipeline.yaml").decode() == PIPELINE
    print(f"ok: a run killed once arrived at openwandb: {len(rows)} rows, each once")


def an_export_that_wandb_syncs(flow: Path, programs: Path, server: Server, folder: Path):
    project = Project(folder, flow, server, "offline")
    project.let_go()
    project.flow("run", "pipelines/p.yaml")
    run, rows = project.journal()
    # A diverged loss, which the ops of this pipeline cannot have, and more rows than fit in one block of the file.
    history = folder / "runs" / run / "tracking/history.jsonl"
    with open(history, "a") as lines:
        for step in range(len(rows), len(rows) + 2000):
            fields = {"_step": str(step), "_runtime": "60.5", "_timestamp": "1795455344.5", "train/loss": "NaN" if step % 2 else "0.5", "train/step": str(step)}
            lines.write(json.dumps({"series": "check", "at": step, "fields": fields}) + "\n")
    run, rows = project.journal()
    exported = project.flow("export", "latest", "--wandb", "exported").strip()
    synced = subprocess.run([str(programs / "wandb"), "sync", exported], cwd=folder, env=project.variables, capture_output=True, text=True)
    print("".join(f"    {line}\n" for line in (synced.stdout + synced.stderr).splitlines()), end="")
    assert synced.returncode == 0, synced.stderr
    assert list((folder / exported).glob("*.synced")), "`wandb sync` did not come to the end"
    same_rows(sorted(server.history(run), key=lambda row: row["_step"]), rows)
    shown = server.run(run)
    assert shown["state"] == "finished", shown["state"]
    assert shown["summary"]["score/f1"] == 100, shown["summary"]
    assert "pipeline" in shown["config"], shown["config"]
    assert server.file(run, "pipeline.yaml").decode() == PIPELINE
    print(f"ok: `wandb sync` sent what was exported: {len(rows)} rows, each once")


def main():
    flow = Path(sys.argv[1]).resolve()
    programs = environment_with_packages()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        server = Server(programs, folder)
        try:
            a_real_run_killed_once(flow, server, folder / "online")
            an_export_that_wandb_syncs(flow, programs, server, folder / "offline")
        except BaseException:
            print((folder / "server.log").read_text()[-3000:], file=sys.stderr)
            raise
        finally:
            server.stop()


if __name__ == "__main__":
    main()
