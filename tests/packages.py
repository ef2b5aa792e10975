"""Packages by others that the checks need, in folders of their own under FLOW_HOME."""

import os
import subprocess
import sys
from pathlib import Path

HOME = Path(os.environ.get("FLOW_HOME") or Path.home() / ".cache/flow")


def environment_with(packages: list[str], name: str, torch: bool = False) -> Path:
    """The folder of programs of the environment `name`, with flow's own torch if `torch`; ends this program where the
    packages cannot be had."""
    folder = HOME / name
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    if torch:
        for site in (folder / "lib").glob("python*/site-packages"):
            shared = (HOME / "venv/lib").glob("python*/site-packages")
            (site / "flow.pth").write_text("".join(f"{path}\n" for path in shared))
    install = [str(folder / "bin/pip"), "install", "--quiet", "--retries", "1", *packages]
    result = subprocess.run(install, capture_output=True, text=True)
    if result.returncode != 0:
        last = (result.stderr.strip().splitlines() or ["pip failed"])[-1]
        print(f"skipped: {', '.join(packages)} cannot be installed: {last}")
        sys.exit(0)
    return folder / "bin"
