"""A Slurm cluster of two nodes on loopback, for tests.

    python3 tests/slurm_cluster.py

Starts munged, slurmctld and two slurmd in a temporary folder and prints, once jobs can run, the path of its `slurm.conf` (for
SLURM_CONF). Stops everything when standard input ends. A line on standard input names a node to fail: its slurmd and all
that runs on it are killed, as if the machine had lost its power; `+NODE` brings it back. Each is answered by `ok`.

Needs Debian's `slurm-wlm` and `munge` (or Slurm >= 22 and MUNGE from elsewhere). Ends with code 77 where they are missing.
"""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TEMPLATE = Path(__file__).resolve().parent / "slurm.conf.in"
NODES = ["n1", "n2"]
PROGRAMS = ["munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol"]


def find(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Cluster:
    def __init__(self, folder: Path):
        self.folder, self.running = folder, {}
        folder.chmod(0o755)
        for name in ["munge", "state", "log", *(f"spool/{node}" for node in NODES)]:
            (folder / name).mkdir(parents=True)
        key = folder / "munge/key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        self.conf = folder / "slurm.conf"
        controller, first, second = free_ports(3)
        values = {
            "FOLDER": folder, "HOST": socket.gethostname(), "USER": getpass.getuser(),
            "CONTROLLER": controller, "NODE1": first, "NODE2": second,
        }  # fmt: skip
        text = TEMPLATE.read_text()
        for name, value in values.items():
            text = text.replace(f"@{name}@", str(value))
        self.conf.write_text(text)
        self.environment = os.environ | {"SLURM_CONF": str(self.conf)}

    def start(self, name: str, *command: str) -> None:
        log = open(self.folder / f"log/{name}.out", "ab")
        # A group of its own, and no part of a terminal's: it is stopped from here.
        self.running[name] = subprocess.Popen(
            [find(command[0]), *command[1:]], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment, start_new_session=True
        )

    def start_all(self) -> None:
        munge = self.folder / "munge"
        options = {"key-file": munge / "key", "socket": munge / "socket", "pid-file": munge / "pid", "log-file": munge / "log", "seed-file": munge / "seed"}
        self.start("munged", "munged", "--foreground", "--force", "--num-threads=2", *(f"--{name}={path}" for name, path in options.items()))
        self.wait("munged", lambda: (munge / "socket").exists())
        self.start("slurmctld", "slurmctld", "-D", "-f", str(self.conf))
        for node in NODES:
            self.start_node(node)
        self.wait("the nodes", lambda: self.states() == ["idle", "idle"])

    def start_node(self, node: str) -> None:
        self.start(node, "slurmd", "-D", "-f", str(self.conf), "-N", node)

    def states(self) -> list[str]:
        shown = subprocess.run([find("sinfo"), "--noheader", "--Node", "--partition=main", "--format=%T"], env=self.environment, capture_output=True, text=True)
        return shown.stdout.split()

    def wait(self, what: str, done, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not done():
            for name, process in self.running.items():
                if process.poll() is not None:
                    sys.exit(f"{name} ended with {process.returncode}:\n{self.logs()}")
            if time.monotonic() > end:
                sys.exit(f"waited too long for {what}; nodes are {self.states()}:\n{self.logs()}")
            time.sleep(0.1)

    def logs(self) -> str:
        return "\n".join(f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-15:]) for path in sorted((self.folder / "log").iterdir()))

    def jobs_of(self, node: str) -> list[int]:
        """All processes of the jobs on a node: its step daemons, and everything below them."""
        parents, commands = {}, {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    stat = (entry / "stat").read_text()
                    parents[int(entry.name)] = int(stat.rsplit(")", 1)[1].split()[1])
                    commands[int(entry.name)] = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
                except OSError:
                    continue
        ours = {pid for pid, command in commands.items() if f"SLURMD_NODENAME={node}".encode() in command and str(self.conf).encode() in command}
        roots = {parents[pid] for pid in ours} | ours
        # The step daemon's environment does not say for which node it is; it is the parent of a job's first process.
        found = {pid for pid in roots if b"slurmstepd" in commands.get(pid, b"") or pid in ours}
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return sorted(found - {os.getpid()})

    def fail(self, node: str) -> None:
        process = self.running.pop(node)
        process.kill()
        process.wait()
        for pid in self.jobs_of(node):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        # What finds out that a machine is gone would take half a minute, and jobs that come back would wait for two more.
        self.control("update", f"NodeName={node}", "State=DOWN", "Reason=failed")
        pending = subprocess.run([find("squeue"), "--noheader", "--array", "--state=PENDING", "--format=%i"], env=self.environment, capture_output=True, text=True)
        for job in pending.stdout.split():
            self.control("update", f"JobId={job}", "StartTime=now")

    def control(self, *arguments: str) -> None:
        done = subprocess.run([find("scontrol"), *arguments], env=self.environment, capture_output=True, text=True)
        if done.returncode != 0:
            print(f"scontrol {' '.join(arguments)}: {done.stderr.strip()}", file=sys.stderr)

    def stop(self) -> None:
        for node in NODES:
            for pid in self.jobs_of(node):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        for process in reversed(self.running.values()):
            process.terminate()
        for process in self.running.values():
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()


def main() -> None:
    missing = [program for program in PROGRAMS if not find(program)]
    if missing:
        print(f"no Slurm here: {', '.join(missing)} not found", file=sys.stderr)
        sys.exit(77)
    for number in [signal.SIGTERM, signal.SIGHUP]:
        signal.signal(number, lambda *_: sys.exit(1))
    # A terminal's interrupt is for whoever started this; it ends standard input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with tempfile.TemporaryDirectory(prefix="flow-slurm-", ignore_cleanup_errors=True) as folder:
        cluster = Cluster(Path(folder))
        try:
            cluster.start_all()
            print(cluster.conf, flush=True)
            for line in sys.stdin:
                name = line.strip()
                if name.startswith("+"):
                    cluster.start_node(name[1:])
                    cluster.wait(name, lambda: "down" not in " ".join(cluster.states()))
                else:
                    cluster.fail(name)
                print("ok", flush=True)
        finally:
            cluster.stop()


if __name__ == "__main__":
    main()
