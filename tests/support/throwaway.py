"""This machine's root, written to and thrown away: where instructions that change packages and
users are carried out as they stand. Needs root and Linux's overlays; the network is this machine's.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile

# The system's own programs, not those of an interpreter's environment.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# In a namespace of mounts of its own: all of it is gone when the process has ended. What is written
# lies in memory.
_ENTER = """
set -e
mount -t tmpfs none "$1"
cd "$1"
mkdir upper work root
mount -t overlay none -o lowerdir=/,upperdir=upper,workdir=work root
mount --rbind /proc root/proc
mount --rbind /dev root/dev
cd root
exec chroot . /bin/sh -c "$2"
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    """`script` by the shell, as root of the throwaway."""
    with tempfile.TemporaryDirectory() as folder:
        private = ["unshare", "--mount", "--propagation", "private"]
        return subprocess.run(
            [*private, "/bin/sh", "-c", _ENTER, "-", folder, script],
            env={"PATH": PATH, "HOME": "/root", "DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )


@functools.cache
def unavailable(*programs: str) -> str:
    """Why there can be none here that has `programs`; empty if there can."""
    if os.geteuid() != 0:
        return "only root can mount a throwaway of this machine"
    for program in ("unshare", *programs):
        if shutil.which(program, path=PATH) is None:
            return f"{program} is not installed"
    done = run("exit 0")
    if done.returncode:
        return f"this machine mounts no throwaway of itself: {done.stderr}"
    if "apt-get" in programs and (done := run("apt-get update --error-on=any")).returncode:
        return f"no packages can be had here: {done.stderr}"
    return ""
