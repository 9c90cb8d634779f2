"""A program that ties its life to its parent's, and then becomes the program that was asked for.

It is started by its path, in a bare interpreter, and ends in an `exec`: the child has the pid that
`subprocess.Popen` returned, and nothing stands between the two. Rejected: `preexec_fn`, which runs Python
between fork and exec and may deadlock where the parent has threads; and a process that stays and watches,
which would itself have to be watched.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from typing import NamedTuple

PR_SET_PDEATHSIG = 1
PR_SET_KEEPCAPS = 8
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
CAP_DAC_OVERRIDE = 1
CAPABILITY_VERSION_3 = 0x20080522


class SystemUser(NamedTuple):
    """Whom a program runs as."""

    uid: int
    gid: int


def tied(argv: Sequence[str], death_signal: signal.Signals, user: SystemUser | None = None) -> list[str]:
    """The command line that starts `argv` so that it gets `death_signal` when this process is gone.

    Linux sends that signal when the *thread* that started the child ends, so start it on one that lives as
    long as the child shall. Elsewhere nothing is sent. With `user`, the program runs as that one.
    """
    identity = f"{user.uid}:{user.gid}" if user else ""
    bare = [sys.executable, "-I", "-S", __file__]
    return [*bare, str(os.getpid()), str(int(death_signal)), identity, *argv]


def main(parent: int, death_signal: int, identity: str, argv: list[str]) -> None:
    """Becomes `argv`; returns only by an exception."""
    if identity:
        uid, gid = (int(part) for part in identity.split(":"))
        become(SystemUser(uid, gid))
    # After the change of user, which would clear it.
    if sys.platform == "linux":
        control(PR_SET_PDEATHSIG, death_signal)
    if os.getppid() != parent:
        sys.exit("the process that asked for this one is gone")
    # Python ignores this signal, and what is ignored stays so across an exec.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.execvp(argv[0], argv)  # noqa: S606


def become(user: SystemUser) -> None:
    """Changes from root to `user`, who may still go where root's files are.

    A checkout under /root, or a temporary folder of root's, is closed to everybody else. Instead of opening
    each folder on the way, for good and for all, the program keeps the one right to pass closed doors.
    """
    linux = sys.platform == "linux"
    if linux:
        control(PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setgid(user.gid)
    os.setuid(user.uid)
    if linux:
        keep_only(CAP_DAC_OVERRIDE)
        control(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_OVERRIDE, 0, 0)


def keep_only(capability: int) -> None:
    """Drops every capability but this one, and makes it one that an exec may hand on; see capset(2)."""
    bit = 1 << capability
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    effective, permitted, inheritable = 0, bit, bit
    data = (ctypes.c_uint32 * 6)(effective, permitted, inheritable)
    check(libc().capset(header, data), "capset")


def control(*arguments: int) -> None:
    """prctl(2)."""
    check(libc().prctl(*(ctypes.c_ulong(argument) for argument in arguments)), "prctl")


def libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def check(result: int, call: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), call)


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
    except OSError as error:
        sys.stderr.write(f"cannot run {sys.argv[4]}: {error}\n")
        sys.exit(127)
