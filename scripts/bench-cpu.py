#!/usr/bin/env python3
"""flow beside transformers + PEFT on this CPU: a random SmolLM2-135M in bf16, the same shapes, one after the other.

usage: bench-cpu.py FLOW [PYTHON]   FLOW is the program; PYTHON has torch, transformers and peft (default: this one)

Each kind of work is measured by flow and then at once by the peer, so that both meet the machine in the same state. The
judge is measured a second time with 112 tokens that all prompts share: flow computes those once, the peer with each prompt.
"""

import json
import os
import pathlib
import subprocess
import sys

PEER = pathlib.Path(__file__).with_name("bench-peer-cpu.py")
MODEL = ["--model", "random:smollm2-135m", "--json"]
WORK = {
    "judge": ["judge", "--batch", "8", "--prompt", "384", "--runs", "5"],
    "judge, shared": ["judge", "--batch", "8", "--prompt", "272", "--prefix", "112", "--runs", "5"],
    "generate": ["generate", "--batch", "16", "--prompt", "64", "--new-tokens", "64", "--runs", "3"],
    "train": ["train", "--batch", "4", "--seq", "384", "--steps", "5", "--dropout", "0.05", "--no-profile"],
}
# The peer computes all tokens of a prompt whether they are shared or not.
SAME_AS = {"judge, shared": "judge"}


def measure(command):
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(command, stdout=subprocess.PIPE, env=environment)
    if ended.returncode:
        sys.exit(f"`{' '.join(map(str, command))}` ended with {ended.returncode}; its message is above")
    return json.loads(ended.stdout)


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    flow, python = sys.argv[1], (sys.argv[2:] or [sys.executable])[0]
    peers = {}
    print(f"{'tokens/s':15}{'flow':>9}{'peer':>9}{'ratio':>7}   flow from–to")
    for name, arguments in WORK.items():
        found = measure([flow, "bench", *arguments, *MODEL])
        own = found.get("tokens_per_second_with_reused_prefix") or found["tokens_per_second"]
        work = SAME_AS.get(name, name)
        if work not in peers:
            peers[work] = measure([python, PEER, work])["tokens_per_second"]
        print(
            f"{name:15}{own['median']:9.0f}{peers[work]:9.0f}{own['median'] / peers[work]:7.2f}"
            f"   {own['min']:.0f}–{own['max']:.0f}",
            flush=True,
        )


main()
