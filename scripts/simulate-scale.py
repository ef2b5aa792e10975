#!/usr/bin/env python3
"""Measures what docs/scale.md counts with: what nodes, variants, tables, runs and results cost as they become many.

    scripts/simulate-scale.py target/release/flow [--quick] [--json FILE]

Each part runs pipelines that do next to nothing in a folder of its own, so that what is left is flow itself. Times are wall seconds, the
smallest of three where a run changes nothing; memory is the peak of the process. About four minutes on two quiet cores, one with --quick.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


class Project:
    """A folder with one pipeline, and what flow's commands cost there."""

    def __init__(self, flow, stages, extra=""):
        self.flow = flow
        self.place = tempfile.TemporaryDirectory(prefix="simulate-scale-", ignore_cleanup_errors=True)
        self.folder = Path(self.place.name)
        (self.folder / "p.yaml").write_text("stages:\n" + "".join(stages) + extra)

    def __call__(self, *arguments):
        """Seconds and peak memory in bytes of one command."""
        start = time.perf_counter()
        child = subprocess.Popen([self.flow, *arguments], cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        said = child.stderr.read()
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
        if status:
            sys.exit(f"flow {' '.join(arguments)} failed in {self.folder}:\n{said.decode()[-2000:]}")
        return seconds, usage.ru_maxrss * 1024

    def least(self, *arguments, times=3):
        return min(self(*arguments) for _ in range(times))

    def size(self, path):
        path = self.folder / path
        return sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())

    def latest_record(self):
        return self.size(sorted((self.folder / "runs").iterdir())[-1].relative_to(self.folder))


def command(name, above=None, script="echo {name} > $OUT/x"):
    inputs = f"inputs: {{ a: {above} }}, " if above else ""
    return f"  {name}: {{ uses: command, {inputs}with: {{ run: '{script.format(name=name)}' }} }}\n"


def chain(size):
    return [command(f"s{index}", f"s{index - 1}" if index else None) for index in range(size)]


def nodes(flow, sizes):
    """Nodes of one pipeline that has nothing to do: seconds, memory, and what its record takes."""
    rows = []
    for size in sizes:
        project = Project(flow, chain(size))
        cold, _ = project("run", "p.yaml")
        seconds, memory = project.least("run", "p.yaml")
        checked, _ = project.least("check", "p.yaml")
        planned, _ = project.least("plan", "p.yaml")
        rows.append({"nodes": size, "cold": cold, "no_op": seconds, "memory": memory, "check": checked, "plan": planned,
                     "record_bytes": project.latest_record(), "ledger_bytes": project.size("cache/ledger.jsonl"), "index_bytes": project.size("cache/index.json")})
    return rows


def variants(flow, size, counts):
    """A matrix whose variants share all nodes but the last two, with nothing to do."""
    rows = []
    last = f"  tail: {{ uses: command, inputs: {{ a: s{size - 1} }}, with: {{ run: 'echo 0 > $OUT/x' }} }}\n"
    end = "  end: { uses: command, inputs: { a: tail }, with: { run: 'cat $IN_a/x > $OUT/x' } }\n"
    for count in counts:
        values = ", ".join(f"'echo {value} > $OUT/x'" for value in range(count))
        matrix = f"matrix: {{ tail.with.run: [{values}] }}\n" if count else ""
        project = Project(flow, chain(size) + [last, end], matrix)
        project("run", "p.yaml")
        seconds, memory = project.least("run", "p.yaml")
        checked, _ = project.least("check", "p.yaml")
        planned, _ = project.least("plan", "p.yaml")
        rows.append({"variants": count, "shared_nodes": size, "check": checked, "plan": planned, "no_op": seconds, "memory": memory,
                     "record_bytes": project.latest_record()})
    return rows


def tables(flow, sizes):
    """Nodes that are one query and give a small table: what they cost, and one more when so many are there already."""
    rows = []
    for size in sizes:
        stages = [f"  t{index}: {{ uses: sql, with: {{ query: 'select {index} as id' }} }}\n" for index in range(size)]
        project = Project(flow, stages)
        cold, memory = project("run", "p.yaml", "--jobs", "1")
        checked, _ = project.least("check", "p.yaml")
        seconds, _ = project.least("run", "p.yaml")
        one = stages[:-1] + [f"  t{size - 1}: {{ uses: sql, with: {{ query: 'select {size} as id' }} }}\n"]
        (project.folder / "p.yaml").write_text("stages:\n" + "".join(one))
        more, _ = project("run", "p.yaml")
        rows.append({"tables": size, "cold": cold, "check": checked, "no_op": seconds, "one_more": more, "memory": memory,
                     "database_bytes": project.size("cache/flow.duckdb")})
    return rows


def records(flow, counts):
    """Runs on record: what it costs to list them, and to find the latest."""
    project = Project(flow, [command("only")])
    project("run", "p.yaml")
    first = next((project.folder / "runs").iterdir())
    rows, made = [], 1
    for count in counts:
        for number in range(made, count):
            copy = project.folder / "runs" / f"20200101-{number // 65536:06}-{number % 65536:04x}"
            copy.mkdir()
            head = (first / "run.json").read_text().replace(first.name, copy.name)
            (copy / "run.json").write_text(head)
            (copy / "events.jsonl").touch()
        made = count
        listed, _ = project.least("runs")
        shown, _ = project.least("show", "latest")
        ran, _ = project.least("run", "p.yaml")
        rows.append({"runs": count, "runs_listed": listed, "show_latest": shown, "no_op": ran})
    return rows


def books(flow, counts):
    """`flow bench cache`."""
    done = subprocess.run([flow, "bench", "cache", "--json", "--results", ",".join(map(str, counts))], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


def text(rows):
    def cell(key, value):
        if key.endswith("verdicts"):
            return f"{value:,.0f} /s"
        if not isinstance(value, float):
            value = value or 0
            return f"{value / 2**20:.1f} MiB" if key.endswith(("bytes", "memory")) or key in ("database", "ledger", "snapshot") else f"{value:,}"
        return f"{value:.3f} s" if value < 10 else f"{value:.1f} s"

    cells = [list(rows[0])] + [[cell(key, value) for key, value in row.items()] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in cells)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("flow", help="the binary to measure")
    parser.add_argument("--quick", action="store_true", help="smaller numbers")
    parser.add_argument("--only", help="parts, such as nodes,variants")
    parser.add_argument("--json", type=Path, help="write everything into this file too")
    options = parser.parse_args()
    flow, few = str(Path(options.flow).resolve()), options.quick
    parts = {
        "nodes": lambda: nodes(flow, [100, 1000] if few else [100, 1000, 10_000]),
        "variants": lambda: variants(flow, 1000, [0, 1, 32] if few else [0, 1, 8, 32, 128]),
        "tables": lambda: tables(flow, [100, 400] if few else [250, 500, 1000, 2000]),
        "records": lambda: records(flow, [100, 1000] if few else [100, 1000, 10_000]),
        "books": lambda: books(flow, [1000, 10_000] if few else [1000, 10_000, 100_000, 1_000_000]),
    }
    wanted = options.only.split(",") if options.only else list(parts)
    found = {}
    for name in wanted:
        found[name] = parts[name]()
        print(f"\n{name}\n{text(found[name])}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
