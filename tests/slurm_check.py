"""pipelines/medquad.yaml as Slurm jobs, beside the same on this machine: every digest has to be the same.

    python3 tests/slurm_check.py target/debug/flow [--limit ROWS]     the whole pipeline; minutes on two cores
    python3 tests/slurm_check.py target/debug/flow --training         source, split and training of it alone
    python3 tests/slurm_check.py target/debug/flow --jobs 200         so many scripts at once, and what a job costs

The judges are cut into two shards each. While the training runs, its machine loses its power; the job comes back on the
other one and goes on from its checkpoint. The cluster is `tests/slurm_cluster.py`.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

TRAINING = """
models: { base: { path: "${FLOW_HOME}/models/smollm2-135m-instruct.gguf" } }
stages:
  questions: { uses: source, with: { format: jsonl, path: pipelines/data/sample.jsonl, limit: 40 } }
  split: { uses: stratified-split, inputs: { rows: questions.rows }, with: { validation: 0.2 } }
  train: { uses: qlora-train, inputs: { train: split.train, validation: split.validation }, with: { model: base, gradient_accumulation: 1, max_length: 128, eval_every: 4 } }
"""


def scripts(count: int) -> str:
    """A pipeline of nodes that know nothing of each other."""
    stages = [f"  s{number}: {{ uses: command, with: {{ run: 'echo {number} > $OUT/x' }} }}\n" for number in range(count)]
    return "stages:\n" + "".join(stages)


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
    """A folder with a pipeline: `text`, or MedQuAD's."""

    def __init__(self, folder: Path, flow: Path, variables: dict[str, str], arguments: list[str], text: str | None):
        self.folder, self.flow, self.variables = folder, flow, os.environ | variables
        folder.mkdir()
        (folder / "pipelines").symlink_to(ROOT / "pipelines")
        if text:
            (folder / "pipeline.yaml").write_text(text)
        self.quiet, self.cpu = False, (0.0, 0.0)
        self.arguments = ["run", "pipeline.yaml" if text else "pipelines/medquad.yaml", *arguments]

    def run(self, *more: str) -> str:
        print(f"$ flow {' '.join([*self.arguments, *more])}", flush=True)
        start = time.monotonic()
        said = []
        with subprocess.Popen([self.flow, *self.arguments, *more], cwd=self.folder, env=self.variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as run:
            for line in run.stderr:
                said.append(line)
                if not self.quiet:
                    print(line, end="", flush=True)
            os.waitid(os.P_PID, run.pid, os.WEXITED | os.WNOWAIT)
            self.cpu = cpu_seconds(run.pid)
        assert run.returncode == 0, f"it ended with {run.returncode}:\n{''.join(said)}"
        print(f"{time.monotonic() - start:.0f} s", flush=True)
        return "".join(said)

    def digests(self) -> dict[tuple[str, str], str]:
        shown = subprocess.run([self.flow, "show", "latest", "--json"], cwd=self.folder, env=self.variables, capture_output=True, text=True, check=True)
        nodes = json.loads(shown.stdout)["nodes"]
        return {(node["name"], output["name"]): output["digest"] for node in nodes for output in node["outputs"]}

    def steps(self) -> list[int]:
        """Steps of the training that the run here has heard of so far, in that order."""
        lines = [line for path in self.folder.glob("runs/*/metrics.jsonl") for line in path.read_text().splitlines(keepends=True)]
        metrics = [json.loads(line) for line in lines if line.endswith("\n")]
        return [metric["step"] for metric in metrics if metric["node"] == "train.fit" and "train/loss" in metric["values"]]


def cpu_seconds(pid: int) -> tuple[float, float]:
    """Of a process that has ended and not been waited for, and of the children that it has waited for (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    user, system, children_user, children_system = (int(field) / os.sysconf("SC_CLK_TCK") for field in fields[11:15])
    return user + system, children_user + children_system


@contextmanager
def failing_in_training(cluster: Cluster, project: Project):
    """Takes the power from the machine of the training after its third step; the steps heard of until then, in the end."""
    over, before = threading.Event(), []

    def until(what: Callable[[], str | None]) -> str | None:
        while not over.wait(0.2):
            if found := what():
                return found

    def watch() -> None:
        machine = until(lambda: len(project.steps()) >= 3 and cluster.machine_of("train.fit"))
        if not machine:
            return
        before.extend(project.steps())
        print(f"-- {machine} fails in training, after step {before[-1]}", flush=True)
        cluster.tell(machine)
        # What Slurm hears of the old try when the machine comes back would be taken for the new one, were it there again.
        other = until(lambda: cluster.machine_of("train.fit"))
        cluster.tell(f"+{machine}")
        print(f"-- it goes on on {other}; {machine} is back", flush=True)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield before
    finally:
        over.set()
        watching.join()


def compare(cluster: Cluster, new: Callable[[str], Project], on_slurm: list[str]) -> None:
    """Runs a pipeline with a training on the cluster, where a machine fails in the midst of it, and on this machine."""
    there = new("there")
    with failing_in_training(cluster, there) as before:
        said = there.run("--executor", "slurm", *on_slurm)
    assert before, "the training was over before its machine could fail"
    resumed = re.search(r"continuing after step (\d+) of (\d+)", said)
    assert resumed and int(resumed[1]) >= before[-1] - 1, f"the training did not go on from step {before[-1]}"
    # A step whose checkpoint was not whole yet is done, and told, twice.
    assert {*there.steps()} == {*range(1, int(resumed[2]) + 1)}, there.steps()
    left = [path.name for path in there.folder.glob("cache/jobs/*")]
    assert not left, f"left behind: {left}"
    here = new("here")
    here.run("--jobs", "1")
    ours, theirs = here.digests(), there.digests()
    different = sorted(".".join(name) for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    assert not different, f"other digests: {different}"
    print(f"ok: {len(ours)} outputs, made by {len(cluster.jobs())} jobs on two machines of which one failed, have the digests of a run without Slurm")


def load(cluster: Cluster, new: Callable[[str], Project], count: int) -> None:
    """As many jobs as scripts, none of which waits for another: by flow, and by `sbatch` alone."""
    there = new("there")
    there.quiet = True
    start = time.monotonic()
    there.run("--executor", "slurm", *settings(executor__slurm__memory="100M", executor__slurm__cpus=1))
    seconds, (own, commands) = time.monotonic() - start, there.cpu
    ran = [name for name in cluster.jobs() if name.startswith("flow-")]
    assert len(ran) == count and len({*ran}) == count, f"{len(ran)} jobs"
    left = [path.name for path in there.folder.glob("cache/jobs/*")]
    assert not left, f"left behind: {left}"
    here = new("here")
    here.quiet = True
    here.run()
    assert here.digests() == there.digests() and len(here.digests()) == count
    print(f"ok: {count} jobs, each done once, with the digests of a run without Slurm")
    bare, bare_commands = alone(cluster, count)
    each = lambda total: f"{total / count * 1000:.0f} ms"
    print(f"a job by flow:      {each(seconds)}; CPU of the coordinator {each(own)}, of the Slurm commands that it calls {each(commands)}")
    print(f"a job by `sbatch`:  {each(bare)}; CPU of `sbatch` {each(bare_commands)}")


def alone(cluster: Cluster, count: int) -> tuple[float, float]:
    """Seconds that Slurm takes for as many jobs that do nothing, and CPU seconds of the `sbatch` for each."""
    used = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    start, before = time.monotonic(), used()
    for _ in range(count):
        [id, *_] = cluster.ask("sbatch", "--parsable", "--job-name=bare", "--mem=100M", "--cpus-per-task=1", "--output=/dev/null", "--wrap=true")
        assert id.isdigit(), "sbatch took no job"
    commands = used() - before
    while cluster.ask("squeue", "--noheader", "--name=bare", "--format=%i") != [""]:
        time.sleep(0.2)
    return time.monotonic() - start, commands


def settings(**values: object) -> list[str]:
    return [part for name, value in values.items() for part in ("--set", f"{name.replace('__', '.')}={value}")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("flow", type=Path)
    parser.add_argument("--limit", type=int, default=40, help="rows of MedQuAD")
    parser.add_argument("--training", action="store_true", help="only made-up rows, their split and the training")
    parser.add_argument("--jobs", type=int, help="only so many scripts, and what a job costs")
    options = parser.parse_args()
    flow = options.flow.resolve()
    cluster = Cluster()
    # Two jobs run at once on this machine, so each gets one thread; the run here gets the same.
    variables = {"SLURM_CONF": cluster.conf, "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    arguments = [] if options.jobs else settings(train__with__batch_size=4, train__with__checkpoint_every=1)
    text = scripts(options.jobs) if options.jobs else TRAINING if options.training else None
    try:
        with tempfile.TemporaryDirectory() as folder:

            def new(name: str) -> Project:
                return Project(Path(folder) / name, flow, variables, arguments, text)

            if options.jobs:
                return load(cluster, new, options.jobs)
            if options.training:
                return compare(cluster, new, [])
            arguments += settings(questions__with__limit=options.limit)
            fetched = subprocess.run([flow, "fetch", "pipelines/medquad.yaml"], cwd=ROOT, env=os.environ, capture_output=True, text=True)
            if fetched.returncode != 0:
                print(f"MedQuAD is not to be had, so this is the profile `sample`: {fetched.stderr.strip()}")
                arguments += ["--profile", "sample"]
            compare(cluster, new, settings(dedup__with__shards=2, clean__with__shards=2, evaluate__with__shards=2))
            jobs = cluster.jobs()
            assert sum(name.endswith("-clean.judge") for name in jobs) == 2, jobs
    finally:
        cluster.stop()


if __name__ == "__main__":
    main()
