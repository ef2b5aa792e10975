"""Runs a program in a terminal of its own and types into it.

    python3 terminal.py '[["prompt> ", "typed\\r"], …]' PROGRAM ARGUMENT…

Of each pair the first text is waited for in what came since the last, then the second is typed. Writes all that came to
standard output and ends with the program's code, or with 99 where a text did not come.
"""

import json
import os
import pty
import select
import sys
import time

SECONDS = 120


def main() -> int:
    steps = json.loads(sys.argv[1])
    child, terminal = pty.fork()
    if child == 0:
        os.execvp(sys.argv[2], sys.argv[2:])
    came, seen, deadline = b"", 0, time.monotonic() + SECONDS
    while True:
        if steps and (place := came.find(steps[0][0].encode(), seen)) >= 0:
            expected, typed = steps.pop(0)
            seen = place + len(expected.encode())
            os.write(terminal, typed.encode())
            continue
        ready, _, _ = select.select([terminal], [], [], max(0, deadline - time.monotonic()))
        if not ready:
            print(came.decode(errors="replace"), f"\n`{steps[0][0] if steps else 'the end'}` did not come", sep="")
            os.kill(child, 9)
            return 99
        try:
            more = os.read(terminal, 4096)
        except OSError:
            # So says the system that the other end is closed.
            more = b""
        if not more:
            break
        came += more
    sys.stdout.buffer.write(came)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    sys.exit(main())
