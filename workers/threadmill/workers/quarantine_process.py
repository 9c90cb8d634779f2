"""The child process of a quarantine: `python -m threadmill.workers.quarantine_process`. See quarantine.py."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TextIO

from threadmill.core.doorbell import Bell
from threadmill.core.errors import LeaseLost
from threadmill.core.logs import configure_logs
from threadmill.core.settings import Settings
from threadmill.workers.claims import BellDropped
from threadmill.workers.executor import RunFailed, RunPostponed
from threadmill.workers.runtime import Draining, Runtime
from threadmill.workers.worker import leave


def main() -> None:
    """Executes the runs whose bells stand on stdin, until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is for the parent
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what nodes print is not for the parent
    first = sys.stdin.readline()
    if not first:  # the parent was lost in the meantime
        return
    settings = Settings(**json.loads(first))
    configure_logs(settings)

    def tell(**message: Any) -> None:
        _write(answers, message)

    lines: SimpleQueue[str] = SimpleQueue()

    def end() -> None:
        runtime.drain()  # at its next step, or after `drain_timeout`
        lines.put("")

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        end()

    runtime = Runtime(
        settings,
        limit=1,
        alone=True,
        # A node that will not end keeps the one thread. The next bell starts another child.
        on_replace=lambda: threading.Thread(target=end, daemon=True).start(),
        on_node=lambda node: tell(node=node),
    )
    runtime.start()
    # Beside the run that is executed, so that the end of the input is seen at once.
    threading.Thread(target=read, daemon=True).start()
    while line := lines.get():
        bell = Bell.of(*json.loads(line))
        tell(worker=str(runtime.worker_id))
        with suppress(BellDropped, RunFailed, RunPostponed, LeaseLost, Draining):  # it is in the ledger
            runtime.submit(runtime.answer(bell)).result()
        tell(done=str(bell.run_id))
    runtime.stop()
    leave(0)


def _write(stream: TextIO, message: dict[str, Any]) -> None:
    with suppress(OSError):  # the parent is gone; the end of the input says so too
        stream.write(json.dumps(message) + "\n")
        stream.flush()


if __name__ == "__main__":
    main()
