"""A command that kills itself in the midst of its work."""

from __future__ import annotations

# The command runs in a process of its own that kills itself, with no chance to clean up, before its N-th durable
# write: what it syncs, what it renames and what it takes away.
KILLED = """
import os, signal, sys
from capsulekit.cli.main import main
left = int(sys.argv[1])
def dying(real):
    def call(*args, **more):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **more)
    return call
for name in ("fsync", "unlink", "rename", "rmdir"):
    setattr(os, name, dying(getattr(os, name)))
sys.exit(main(sys.argv[2:]))
"""
