"""Runs a Python module in a child process that is killed when its parent ends, however that ends:
kill -9, a closed terminal, out of memory.

`python child.py PID -m MODULE ARGUMENT ...`, started by process PID, runs MODULE under its own
process id. On Linux it execs `python -m MODULE ARGUMENT ...`, which the kernel kills when the
thread that started it ends (prctl's PR_SET_PDEATHSIG, which survives exec). Elsewhere MODULE runs
in it, next to a thread that checks four times a second whether PID is still its parent.
"""

import ctypes
import os
import runpy
import signal
import sys
import threading
import time

PR_SET_PDEATHSIG = 1  # linux/prctl.h
POLL_SECONDS = 0.25


def command(arguments: list[str]) -> list[str]:
    """Returns the command line of `python ARGUMENTS`, tied to this process; ARGUMENTS start with
    -m. Start it from the main thread: see the module's docstring.
    """
    return [sys.executable, __file__, str(os.getpid()), *arguments]


def main(parent: int, arguments: list[str]) -> None:
    """Runs `python ARGUMENTS` under this process id, tied to process `parent`."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent died before prctl took effect
        sys.exit(1)
    if sys.platform == "linux":
        os.execv(sys.executable, [sys.executable, *arguments])
    threading.Thread(target=_watch_parent, args=(parent,), daemon=True).start()
    assert arguments[0] == "-m", arguments
    sys.argv, sys.path[0] = arguments[1:], os.getcwd()
    runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
