"""Start-up shim of the embedded server: becomes another user, ties its life to its parent, then becomes the program.

Run as a script by a bare interpreter (`python -I -S`), before any exec; it may import the standard library only.
It stands in for `preexec_fn`, which runs Python between fork and exec and is unsafe in a process with threads.

    python -I -S embedded_launch.py UID GID PARENT PROGRAM ARGUMENT...
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # prctl(2)


def main(arguments: list[str]) -> None:
    """Never returns: it execs, or exits with a message on stderr.

    Args:
        arguments: UID and GID to become (-1 keeps them), PARENT process id, then the command line.
    """
    uid, gid, parent = (int(argument) for argument in arguments[:3])
    os.umask(0o077)
    if uid >= 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if sys.platform == "linux":
        # After setuid, which clears it (prctl(2)); exec keeps it. SIGINT is PostgreSQL's fast shutdown: it ends the
        # sessions and writes a checkpoint, so that the next start need not recover. SIGQUIT would be quicker by
        # a moment and leave up to max_wal_size of log to be replayed then.
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
        if os.getppid() != parent:  # it died before the line above
            sys.exit("the parent process is gone")
    os.execv(arguments[3], arguments[3:])  # noqa: S606 -- no shell is what is wanted here


if __name__ == "__main__":
    main(sys.argv[1:])
