"""`threadmill demo`, for real: stopped in the middle, and then run to its end in the same folder."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

# Nothing else is set, as on a machine that has only just been made.
ENVIRONMENT = {"PATH": os.environ["PATH"]}


@contextmanager
def running_demo(folder: Path) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-m", "threadmill.cli.main", "demo", "--json"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(argv, cwd=folder, env=ENVIRONMENT, text=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.timeout(240)
def test_a_demo_that_is_stopped_leaves_no_process_and_the_next_one_holds(tmp_path: Path) -> None:
    with running_demo(tmp_path) as stopped:
        assert stopped.stderr is not None
        said = []
        for line in stopped.stderr:
            said.append(line)
            if "questions are enqueued" in line:
                break
        children = psutil.Process(stopped.pid).children(recursive=True)
        stopped.send_signal(signal.SIGTERM)
        output, errors = stopped.communicate(timeout=30)
    assert len(children) > 5, "".join([*said, errors])
    assert stopped.returncode == 128 + signal.SIGTERM
    assert output == ""
    assert "Traceback" not in errors
    assert [child for child in children if child.is_running()] == []

    with running_demo(tmp_path) as whole:
        output, errors = whole.communicate(timeout=120)
    assert whole.returncode == 0, output + errors
    verdict = json.loads(output)
    assert verdict["holds"]
    assert [check["name"] for check in verdict["checks"] if not check["holds"]] == []
    found = {check["name"]: check["found"] for check in verdict["checks"]}
    assert found["Every run succeeded"] == "300 of 300"
    assert found["Answers are right"].startswith("300 of 300;")
    assert "DOWN" in errors
    assert re.search(r"worker-[12] is killed \(SIGKILL\)", errors)
    assert " resumed within " in found["A killed worker cost nothing"]
    assert "Traceback" not in errors
    # What belongs to a `threadmill dev` of this folder would stand beside it.
    assert [path.name for path in (tmp_path / ".threadmill").iterdir()] == ["demo"]
