"""One worker process of Threadmill's, as `threadmill worker` runs it; settings from the environment."""

from __future__ import annotations

import sys

from threadmill.core.settings import Settings
from threadmill.workers.worker import run_worker

if __name__ == "__main__":
    sys.exit(run_worker(Settings()))
