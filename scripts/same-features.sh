#!/usr/bin/env bash
# Names the dependencies that have other features with `torch` than without; they, and all that use them, are built twice.
set -euo pipefail
cd "$(dirname "$0")/.."
features() { cargo tree --locked --edges normal,build --prefix none --format '{p} {f}' "$@" | sed 's/ (\*)$//' | grep -v '^flow ' | sort -u; }
if parted=$(comm -23 <(features --no-default-features) <(features)) && [ -n "$parted" ]; then
  printf '%s\n' "$parted" >&2
  exit 1
fi
