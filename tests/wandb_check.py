"""Tracking against programs by others: the third-party server `openwandb`, and W&B's own `wandb sync`.

    python3 tests/wandb_check.py target/debug/flow

Makes a virtual environment under FLOW_HOME. Everything it talks to listens on 127.0.0.1, but for the package index, once;
where that cannot be reached it says so and ends with code 0.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from wandb_server import Server, acknowledged, environment_with_packages, journal, same_rows, wait_for

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



def a_real_run_killed_once(flow: Path, server: Server, folder: Path):
    project = Project(folder, flow, server, "online")
    process = project.start("run", "pipelines/p.yaml")
    wait_for("the node that waits", (folder / "flags/started").exists)
    # Some rows are acknowledged, others may wait for the next request. Killed between the server's commit and its answer, the
    # rows of that request would be there twice: this server ignores offsets, by which others know them again.
    wait_for("the first rows", lambda: acknowledged(folder) > 0)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    project.let_go()
    project.flow("run", "pipelines/p.yaml")
    run, rows = journal(folder)
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
    run, rows = journal(folder)
    # A diverged loss, which the ops of this pipeline cannot have, and more rows than fit in one block of the file.
    history = folder / "runs" / run / "tracking/history.jsonl"
    with open(history, "a") as lines:
        for step in range(len(rows), len(rows) + 2000):
            fields = {"_step": str(step), "_runtime": "60.5", "_timestamp": "1795455344.5", "train/loss": "NaN" if step % 2 else "0.5", "train/step": str(step)}
            lines.write(json.dumps({"series": "check", "at": step, "fields": fields}) + "\n")
    run, rows = journal(folder)
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
