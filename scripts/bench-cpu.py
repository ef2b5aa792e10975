#!/usr/bin/env python3
"""flow beside transformers + PEFT on this CPU: a random SmolLM2-135M in bf16, the same shapes, one after the other.

usage: bench-cpu.py FLOW PYTHON [WORK…]   FLOW is the program; PYTHON has torch, transformers and peft; WORK is one or
                                          more of judge, shared, generate, train (default: all)

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
    "judge": ["judge", "--batch", "8", "--prompt", "384", "--runs", "3"],
    "shared": ["judge", "--batch", "8", "--prompt", "272", "--prefix", "112", "--runs", "3"],
    "generate": ["generate", "--batch", "16", "--prompt", "64", "--new-tokens", "64", "--runs", "3"],
    "train": ["train", "--batch", "4", "--seq", "384", "--steps", "3", "--dropout", "0.05", "--no-profile"],
}
# The peer computes all tokens of a prompt whether they are shared or not.
SAME_AS = {"shared": "judge"}


def measure(command):
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(command, stdout=subprocess.PIPE, env=environment)
    if ended.returncode:
        sys.exit(f"`{' '.join(map(str, command))}` ended with {ended.returncode}; its message is above")
    return json.loads(ended.stdout)


def main():
    flow, python, *asked = sys.argv[1:] if len(sys.argv) > 2 else sys.exit(__doc__)
    if not WORK.keys() >= set(asked):
        sys.exit(__doc__)
    peers = {}
    print(f"{'tokens/s':15}{'flow':>9}{'peer':>9}{'ratio':>7}   flow from–to")
    for name in asked or WORK:
        found = measure([flow, "bench", *WORK[name], *MODEL])
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
