"""Run a Python module that is killed when the process that started it ends, however that ends: kill
-9, a closed terminal, no memory.

`python child.py PID -m MODULE ARGUMENT ...`, started by the process PID, runs MODULE under its own
process id. On Linux it becomes `python -m MODULE ARGUMENT ...`, which the kernel kills when the
thread that started it ends (prctl's PR_SET_PDEATHSIG, which outlives exec). Elsewhere MODULE runs
in it, beside a thread that looks four times a second whether PID is its parent still.
"""

import ctypes
import os
import runpy
import signal
import sys
import threading
import time

PR_SET_PDEATHSIG = 1  # linux/prctl.h
POLL_SECONDS = 0.25  # seconds


def command(arguments: list[str]) -> list[str]:
    """The command of `python ARGUMENTS`, bound to this process; ARGUMENTS begin with -m. Start
    it from the main thread: see above."""
    return [sys.executable, __file__, str(os.getpid()), *arguments]


def main(parent: int, arguments: list[str]) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before that
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
