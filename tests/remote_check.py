"""The shared cache against a real S3 server: `moto` from PyPI on 127.0.0.1, looked into with boto3.

    python3 tests/remote_check.py target/debug/flow [shared] [many] [large]

Makes a virtual environment under FLOW_HOME; where the package index cannot be reached it says so and ends with code 0. The
figures depend on the server, which is a program for tests: beside each stands what boto3 reaches with it.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from packages import environment_with

PACKAGES = ["moto[server]==5.2.5", "boto3"]
PLANTED = "planted-5ecret"
LARGE = 256 << 20

PIPELINE = """\
cache: { remote: "s3://results/team" }
stages:
  rows: { uses: source, with: { path: rows.csv } }
  files: { uses: command, inputs: { rows: rows }, with: { run: 'mkdir $OUT/a; cp $IN_rows $OUT/a/1; cp $IN_rows $OUT/a/2; ln -s a/1 $OUT/link' } }
  typed: { uses: sql, inputs: { rows: rows }, with: { query: "select id, n::hugeint as h, [n, null] as l, 'y'::enum('y') as e from rows order by id" } }
  last: { uses: command, inputs: { files: files, typed: typed }, with: { run: 'cat $IN_files/a/1 $IN_typed > $OUT/x' } }
  total: { uses: sql, inputs: { typed: typed }, with: { query: "select sum(h) as h from typed" } }
show: [total]
"""
ROWS = "id,n\n" + "".join(f"r{n:03},{n}\n" for n in range(100))


def check(what: str, holds: bool, found: object = "") -> None:
    print(f"{'ok' if holds else 'FAILED'}: {what} {found}".rstrip(), flush=True)
    if not holds:
        sys.exit(1)


class Server:
    """moto in a process of its own; its log has one line a request."""

    def __init__(self, bin: Path, folder: Path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "server.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([bin / "moto_server", "-H", "127.0.0.1", "-p", str(self.port)], stdout=log, stderr=log)
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.1)
        check("the server starts", False, self.log.read_text())

    def requests(self) -> int:
        return self.log.read_text().count(" HTTP/1.1")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


class Machine:
    """A checkout with an empty cache."""

    def __init__(self, folder: Path, flow: Path, server: Server, pipeline: str = PIPELINE):
        self.folder, self.program = folder, flow
        (folder / "pipelines").mkdir(parents=True)
        (folder / "pipelines/p.yaml").write_text(pipeline)
        (folder / "rows.csv").write_text(ROWS)
        self.variables = os.environ | {
            "HOME": str(folder),
            "AWS_ENDPOINT_URL": server.url,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": PLANTED,
        }

    def start(self, *arguments: str) -> subprocess.Popen:
        return subprocess.Popen([self.program, *arguments], cwd=self.folder, env=self.variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def flow(self, *arguments: str) -> tuple[str, str]:
        process = self.start(*arguments)
        out, errors = process.communicate()
        if process.returncode != 0:
            check(f"flow {' '.join(arguments)}", False, errors)
        return out, errors

    def run(self) -> str:
        return self.flow("run", "pipelines/p.yaml")[1]

    def nodes(self) -> list[dict]:
        return json.loads(self.flow("show", "latest", "--json")[0])["nodes"]

    def digests(self) -> list[str]:
        return sorted(f"{node['name']}.{output['name']} {output['digest']}" for node in self.nodes() for output in node["outputs"])

    def with_status(self, status: str) -> list[str]:
        return sorted(node["name"] for node in self.nodes() if node["status"] == status)


def timed(work) -> tuple[float, object]:
    start = time.monotonic()
    result = work()
    return time.monotonic() - start, result


def shared(client, server: Server, flow: Path, folder: Path) -> None:
    """One machine's results on another."""
    machine = lambda name: Machine(folder / name, flow, server)
    first, second, third, fourth = map(machine, ["first", "second", "third", "fourth"])
    said = [part.start("run", "pipelines/p.yaml") for part in (first, third)]
    ends = [process.communicate()[1] for process in said]
    check("two machines run and send the same at once", all(process.returncode == 0 for process in said), ends[0].strip().splitlines()[-2])
    versions = client.list_object_versions(Bucket="results", Prefix="team/")["Versions"]
    check(f"each of {len(versions)} objects was written once", len({version["Key"] for version in versions}) == len(versions))
    try:
        client.put_object(Bucket="results", Key=versions[0]["Key"], Body=b"x", IfNoneMatch="*")
        honoured = False
    except client.exceptions.ClientError as error:
        honoured = error.response["ResponseMetadata"]["HTTPStatusCode"] == 412
    check("the server honours conditional writes", honoured)

    before = server.requests()
    second.run()
    check("an empty checkout runs nothing", second.with_status("cached") == sorted(node["name"] for node in first.nodes()))
    check("every digest is the same", second.digests() == first.digests(), len(first.digests()))
    size = json.loads(second.flow("cache", "size", "--json")[0])
    check("only what is shown was fetched:", (size["tables"], size["objects"]) == (1, 0), f"{server.requests() - before} requests for {len(second.nodes())} nodes")
    print(second.flow("cache", "pull")[0].strip())
    print(second.flow("cache", "verify")[0].strip())
    again = json.loads(second.flow("cache", "push", "--json")[0])
    check("nothing is left to send", again["sent"] == 0)

    table = next(version["Key"] for version in versions if "/tables/" in version["Key"])
    for version in versions:
        if "/tables/" in version["Key"]:
            client.put_object(Bucket="results", Key=version["Key"], Body=b"tampered")
    said = fourth.flow("run", "pipelines/p.yaml", "--force", "total", "--force", "last")[1]
    check("content that was changed is noticed,", "in the shared cache is not used" in said, table.rsplit("/")[-1][:12])
    check("made again and the same", fourth.digests() == first.digests())

    found = [path for path in folder.rglob("*") if path.is_file() and PLANTED.encode() in path.read_bytes()]
    bodies = [client.get_object(Bucket="results", Key=version["Key"])["Body"].read() for version in versions]
    check("the secret key is nowhere", not found and not any(PLANTED.encode() in body for body in bodies), found or "")


def many(client, server: Server, flow: Path, folder: Path) -> None:
    """What a hit costs: 1,000 nodes, twenty wide and fifty deep, on both kinds of store."""
    stages = ["  rows: { uses: source, with: { path: rows.csv } }"]
    for level in range(50):
        for column in range(20):
            above = f"n{level - 1}_{column}" if level else "rows"
            stages.append(f'  n{level}_{column}: {{ uses: sql, inputs: {{ x: {above} }}, with: {{ query: "select *, {column} as c{level} from x limit 3" }} }}')
    for kind, address in [("S3", "s3://results/many"), ("file", f"file://{folder}/many-objects")]:
        pipeline = "\n".join([f'cache: {{ remote: "{address}" }}', "stages:", *stages])
        machine = lambda name: Machine(folder / f"{kind}-{name}", flow, server, pipeline)
        first, whole, single = map(machine, ["first", "whole", "single"])
        local = Machine(folder / f"{kind}-local", flow, server, pipeline)
        local.variables["FLOW_CACHE_REMOTE"] = "file:///nowhere"
        seconds, _ = timed(lambda: local.flow("run", "pipelines/p.yaml", "--offline"))
        cached, _ = timed(lambda: local.flow("run", "pipelines/p.yaml", "--offline"))
        print(f"{kind}: 1,001 nodes run in {seconds:.1f} s without a shared cache, found here in {cached:.1f} s", flush=True)

        def measured(what: str, part: Machine) -> None:
            before = server.requests()
            seconds, said = timed(part.run)
            requests = f", {server.requests() - before} requests" if kind == "S3" else ""
            line = next((line for line in said.splitlines() if line.startswith("shared cache")), "")
            print(f"{kind}: {what}: {seconds:.1f} s{requests}; {line}", flush=True)

        measured("run and sent", first)
        measured("found as a whole", whole)
        check("all are cached", len(whole.with_status("cached")) == 1001)
        measured("known from then on", whole)
        if kind == "S3":
            for object in client.list_objects_v2(Bucket="results", Prefix="many/flow-1/pipelines/")["Contents"]:
                client.delete_object(Bucket="results", Key=object["Key"])
        else:
            shutil.rmtree(folder / "many-objects/flow-1/pipelines")
        measured("found level by level", single)
        check("all are cached", len(single.with_status("cached")) == 1001)


def large(client, server: Server, flow: Path, folder: Path) -> None:
    """One file of 256 MiB there and back, beside boto3 and a copy."""
    source = folder / "large.bin"
    source.write_bytes(os.urandom(LARGE))
    rate = lambda seconds: f"{LARGE / seconds / 1e6:.0f} MB/s"
    sent, _ = timed(lambda: client.upload_file(str(source), "results", "plain"))
    fetched, _ = timed(lambda: client.download_file("results", "plain", str(folder / "plain")))
    copied, _ = timed(lambda: shutil.copyfile(source, folder / "copied"))
    print(f"boto3: sent {rate(sent)}, fetched {rate(fetched)}; a copy on the disk: {rate(copied)}", flush=True)
    for kind, address in [("S3", "s3://results/large"), ("file", f"file://{folder}/large-objects")]:
        pipeline = f"cache: {{ remote: \"{address}\" }}\nstages:\n  made: {{ uses: command, with: {{ run: 'cp \"$FILES\" $OUT/x', files: [\"{source}\"] }} }}\n"
        first, second = (Machine(folder / f"{kind}-{name}", flow, server, pipeline) for name in ["large-first", "large-second"])
        said = first.run()
        line = next(line for line in said.splitlines() if line.startswith("shared cache"))
        second.run()
        print(f"{kind}: {line}; {second.flow('cache', 'pull')[0].strip()}", flush=True)
        check("it is the same", second.digests() == first.digests())


def out_of_reach(server: Server, flow: Path, folder: Path) -> None:
    machine = Machine(folder / "alone", flow, server)
    seconds, said = timed(machine.run)
    check("without the server all is made here, with one warning,", said.count("cannot be used") == 1 and len(machine.with_status("ran")) == 5, f"in {seconds:.1f} s")


def main() -> None:
    flow = Path(sys.argv[1]).resolve()
    bin = environment_with(PACKAGES, "remote-check")
    if Path(sys.prefix) != bin.parent:
        os.execv(bin / "python3", [str(bin / "python3"), *sys.argv])
    import boto3

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = Server(bin, folder)
        try:
            client = boto3.client("s3", endpoint_url=server.url, aws_access_key_id="key", aws_secret_access_key="other", region_name="us-east-1")
            client.create_bucket(Bucket="results")
            client.put_bucket_versioning(Bucket="results", VersioningConfiguration={"Status": "Enabled"})
            parts = {"shared": shared, "many": many, "large": large}
            for part in sys.argv[2:] or parts:
                parts[part](client, server, flow, folder)
                client.put_bucket_versioning(Bucket="results", VersioningConfiguration={"Status": "Suspended"})
        finally:
            server.stop()
        out_of_reach(server, flow, folder)


if __name__ == "__main__":
    main()
