#!/usr/bin/env python3
"""What the engine itself costs: chains and fans of stages that do next to nothing, beside make and ninja.

    scripts/bench-engine.py target/release/flow [--sizes 10,100,1000] [--repeats 3] [--json]

Each stage is one `sh` that copies a line; `cold` starts with an empty cache, `no-op` finds everything done. Times are
medians of wall seconds. Targets: a no-op of 1,000 stages in 0.1 s, cold at most 2 ms per stage more than make.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHAPES = ("chain", "fan")


def above(shape, index):
    """The stage that stage `index` reads."""
    return index - 1 if shape == "chain" else 0


def write_flow(folder, shape, size):
    lines = ["stages:", "  s0: { uses: command, with: { run: 'read -r x < \"$FILES\"; echo $x > $OUT/x', files: [data.txt] } }"]
    for index in range(1, size):
        script = f"read -r x _ < $IN_a/x; echo $x {index} > $OUT/x"
        lines.append(f"  s{index}: {{ uses: command, inputs: {{ a: s{above(shape, index)} }}, with: {{ run: '{script}' }} }}")
    (folder / "p.yaml").write_text("\n".join(lines) + "\n")


def write_make(folder, shape, size):
    rules = [".DEFAULT_GOAL := all", "out/0: data.txt\n\t@read -r x < $<; echo $$x > $@"]
    rules += [f"out/{i}: out/{above(shape, i)}\n\t@read -r x _ < $<; echo $$x {i} > $@" for i in range(1, size)]
    rules.append("all: " + " ".join(f"out/{index}" for index in range(size)))
    (folder / "Makefile").write_text("\n".join(rules) + "\n")


def write_ninja(folder, shape, size):
    rules = ["rule copy\n  command = read -r x _ < $in; echo $$x $out > $out", "build out/0: copy data.txt"]
    rules += [f"build out/{index}: copy out/{above(shape, index)}" for index in range(1, size)]
    (folder / "build.ninja").write_text("\n".join(rules) + "\n")


def tools(flow):
    """Name, writer, command, and what a cold start removes."""
    jobs = str(os.cpu_count() or 1)
    found = [("flow", write_flow, [flow, "run", "p.yaml"], ["cache", "runs"])]
    if shutil.which("make"):
        found.append(("make", write_make, ["make", "-s", "-j", jobs], ["out"]))
    if shutil.which("ninja"):
        found.append(("ninja", write_ninja, ["ninja", "--quiet"], ["out", ".ninja_log", ".ninja_deps"]))
    return found


def timed(command, folder):
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{command[0]} failed in {folder}:\n{done.stderr}")
    return seconds


def measure(tool, shape, size, repeats):
    """Median seconds of a cold run and of the run after it."""
    _, write, command, leftovers = tool
    with tempfile.TemporaryDirectory(prefix="bench-engine-") as name:
        folder = Path(name)
        (folder / "data.txt").write_text("hello\n")
        write(folder, shape, size)
        cold, noop = [], []
        for _ in range(repeats):
            for leftover in leftovers:
                path = folder / leftover
                if path.is_dir():
                    # Objects are read-only.
                    subprocess.run(["chmod", "-R", "u+w", path], check=True)
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
            if "out" in leftovers:
                (folder / "out").mkdir()
            cold.append(timed(command, folder))
            noop.append(timed(command, folder))
    return {"cold": statistics.median(cold), "no-op": statistics.median(noop)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("flow", help="the binary to measure")
    parser.add_argument("--sizes", default="10,100,1000", help="numbers of stages")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print rows for programs")
    options = parser.parse_args()
    rows = []
    for size in map(int, options.sizes.split(",")):
        for shape in SHAPES:
            times = {tool[0]: measure(tool, shape, size, options.repeats) for tool in tools(str(Path(options.flow).resolve()))}
            for kind in ("cold", "no-op"):
                row = {"shape": shape, "stages": size, "kind": kind}
                rows.append(row | {name: time[kind] for name, time in times.items()})
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    others = [name for name in rows[0] if name not in ("shape", "stages", "kind", "flow")]
    print(f"{'':24}{'flow':>9}{'per stage':>11}" + "".join(f"{name:>9}{'ratio':>7}" for name in others))
    for row in rows:
        text = f"{row['kind']:6} {row['shape']:6}{row['stages']:>6}     {row['flow']:>8.3f}s{1000 * row['flow'] / row['stages']:>8.2f} ms"
        print(text + "".join(f"{row[name]:>8.3f}s{row['flow'] / row[name]:>6.1f}×" for name in others))


if __name__ == "__main__":
    main()
