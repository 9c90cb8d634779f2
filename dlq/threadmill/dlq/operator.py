"""Who acts: the name that stands in the record of what was done."""

from __future__ import annotations

import getpass
import os


def operator() -> str:
    """The name of the user whose process this is; a container's user may have none, and is its number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
