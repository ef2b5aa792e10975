#!/usr/bin/env bash
# Opens pages (report.html, compare.html) in a headless Chromium at desktop and phone width, light and dark.
# Fails on a console message (a request to anything but the page is one: its policy forbids it), and where a page is wider
# than the window.
#
#   scripts/check-pages.sh [--pictures FOLDER] PAGE…
#
# Without Chromium it says so and ends with 77, as test harnesses know a skipped test.
set -euo pipefail

pictures=
if [ "${1:-}" = --pictures ]; then
    pictures=$2
    mkdir -p "$pictures"
    shift 2
fi
browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)
if [ -z "$browser" ]; then
    echo "skipped: no Chromium here" >&2
    exit 77
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
complain() {
    echo "$1" >&2
    failed=1
}

open() { # page width height more…
    local page=$1 width=$2 height=$3
    shift 3
    "$browser" --headless --no-sandbox --disable-gpu --hide-scrollbars --user-data-dir="$work/profile" \
        --disable-background-networking --disable-component-update --no-first-run --enable-logging=stderr \
        --window-size="$width,$height" "$@" "file://$page" 2>"$work/log"
}

for page in "$@"; do
    page=$(realpath "$page")
    grep -q "default-src .none." "$page" || complain "$page has no policy against requests"
    name=$(basename "$(dirname "$page")")-$(basename "$page" .html)
    for scheme in light dark; do
        for size in 1280x2400 390x3200; do
            width=${size%x*} height=${size#*x}
            shot=${pictures:-$work}/$name-$scheme-$width.png
            flags=(--screenshot="$shot")
            [ $scheme = dark ] && flags+=(--blink-settings=preferredColorScheme=0)
            open "$page" "$width" "$height" "${flags[@]}" >/dev/null
            if grep -q ':CONSOLE' "$work/log"; then
                complain "$page ($scheme, $width): $(grep ':CONSOLE' "$work/log")"
            fi
        done
    done
    # The page has no script and allows none; a copy that does measures itself. A window of Chromium is 500 wide or more, so
    # the phone is a frame of 390.
    python3 - "$page" "$work/page.html" "$work/frame.html" <<'PY'
import re, sys
text = open(sys.argv[1], encoding="utf-8").read()
text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
open(sys.argv[2], "w", encoding="utf-8").write(text)
open(sys.argv[3], "w", encoding="utf-8").write(
    '<iframe id=f width=390 height=800 style="border:0" src="page.html"></iframe><script>onload=()=>{'
    "const d=document.getElementById('f').contentDocument.documentElement;"
    "document.body.innerHTML=`measured ${d.scrollWidth} of ${d.clientWidth}`}</script>")
PY
    measured=$(open "$work/frame.html" 1000 900 --allow-file-access-from-files --dump-dom | grep -oE 'measured [0-9]+ of [0-9]+' || true)
    read -r _ wide _ window <<<"$measured"
    if [ -z "$measured" ]; then
        complain "$page could not be measured"
    elif [ "$wide" -gt "$window" ]; then
        complain "$page is $wide wide on a phone of $window"
    fi
done
[ $failed = 0 ] && echo "$# pages are fine"
exit $failed
