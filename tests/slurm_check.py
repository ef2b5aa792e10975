"""pipelines/medquad.yaml as Slurm jobs, beside the same on this machine: every digest has to be the same.

    python3 tests/slurm_check.py target/debug/flow [--limit ROWS]

The judges are cut into two shards each. While the training runs, its machine loses its power; the job comes back on the
other one and goes on from its checkpoint. The cluster is `tests/slurm_cluster.py`. Minutes on two cores.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class Cluster:
    def __init__(self):
        self.process = subprocess.Popen([sys.executable, ROOT / "tests/slurm_cluster.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.conf = self.process.stdout.readline().strip()
        if not self.conf:
            print("skipped: no Slurm")
            sys.exit(0 if self.process.wait() == 77 else 1)

    def ask(self, *command: str) -> list[str]:
        return subprocess.run(command, env=os.environ | {"SLURM_CONF": self.conf}, capture_output=True, text=True).stdout.split("\n")

    def tell(self, what: str) -> None:
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline().strip() == "ok", what

    def machine_of(self, node: str) -> str | None:
        for line in self.ask("squeue", "--noheader", "--states=RUNNING", "--format=%j %N"):
            name, _, machine = line.partition(" ")
            if name.endswith(f"-{node}"):
                return machine
        return None

    def jobs(self) -> list[str]:
        return [line for line in self.ask("squeue", "--noheader", "--states=all", "--array", "--format=%j") if line]

    def stop(self) -> None:
        self.process.stdin.close()
        self.process.wait()


class Project:
    def __init__(self, folder: Path, flow: Path, variables: dict[str, str], arguments: list[str]):
        self.folder, self.flow, self.variables = folder, flow, os.environ | variables
        folder.mkdir()
        (folder / "pipelines").symlink_to(ROOT / "pipelines")
        self.arguments = ["run", "pipelines/medquad.yaml", *arguments]

    def run(self, *more: str) -> str:
        print(f"$ flow {' '.join([*self.arguments, *more])}", flush=True)
        start = time.monotonic()
        done = subprocess.run([self.flow, *self.arguments, *more], cwd=self.folder, env=self.variables, capture_output=True, text=True)
        print(done.stderr, end="")
        assert done.returncode == 0, f"it ended with {done.returncode}"
        print(f"{time.monotonic() - start:.0f} s", flush=True)
        return done.stderr

    def digests(self) -> dict[tuple[str, str], str]:
        shown = subprocess.run([self.flow, "show", "latest", "--json"], cwd=self.folder, env=self.variables, capture_output=True, text=True, check=True)
        nodes = json.loads(shown.stdout)["nodes"]
        return {(node["name"], output["name"]): output["digest"] for node in nodes for output in node["outputs"]}

    def steps(self) -> int:
        """Steps of the training so far."""
        return sum(path.read_text().count('"train/loss"') for path in self.folder.glob("runs/*/events.jsonl"))


def fail_in_training(cluster: Cluster, project: Project, over: threading.Event, failed: list[str]) -> None:
    while not over.wait(0.2):
        if project.steps() >= 3 and (machine := cluster.machine_of("train.fit")):
            print(f"-- {machine} fails in training, after step {project.steps()}", flush=True)
            cluster.tell(machine)
            cluster.tell(f"+{machine}")
            failed.append(machine)
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("flow", type=Path)
    parser.add_argument("--limit", type=int, default=40, help="rows of MedQuAD")
    options = parser.parse_args()
    flow = options.flow.resolve()
    cluster = Cluster()
    try:
        with tempfile.TemporaryDirectory() as folder:
            # Two jobs run at once on this machine, so each gets one thread; the run here gets the same.
            variables = {"SLURM_CONF": cluster.conf, "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
            settings = [f"questions.with.limit={options.limit}", "train.with.batch_size=4", "train.with.checkpoint_every=1"]
            arguments = [part for setting in settings for part in ("--set", setting)]
            fetched = subprocess.run([flow, "fetch", "pipelines/medquad.yaml"], cwd=ROOT, env=os.environ, capture_output=True, text=True)
            if fetched.returncode != 0:
                print(f"MedQuAD is not to be had, so this is the profile `sample`: {fetched.stderr.strip()}")
                arguments += ["--profile", "sample"]
            there = Project(Path(folder) / "there", flow, variables, arguments)
            over, failed = threading.Event(), []
            watch = threading.Thread(target=fail_in_training, args=(cluster, there, over, failed))
            watch.start()
            shards = [part for stage in ["dedup", "clean", "evaluate"] for part in ("--set", f"{stage}.with.shards=2")]
            said = there.run("--executor", "slurm", *shards)
            over.set()
            watch.join()
            jobs = cluster.jobs()
            assert failed and "continuing after step" in said, "the training was over before its machine could fail"
            assert sum(name.endswith("-clean.judge") for name in jobs) == 2, jobs
            here = Project(Path(folder) / "here", flow, variables, arguments)
            here.run("--jobs", "1")
            ours, theirs = here.digests(), there.digests()
            different = sorted(".".join(name) for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
            assert not different, f"other digests: {different}"
            print(f"ok: {len(ours)} outputs, made by {len(jobs)} jobs on two machines of which one failed, have the digests of a run without Slurm")
    finally:
        cluster.stop()


if __name__ == "__main__":
    main()
