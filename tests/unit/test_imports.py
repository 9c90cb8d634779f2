"""What a fresh interpreter loads with each part of the namespace package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import threadmill

ROOT = Path(__file__).parents[2]
PARTS = ("core", "producers", "workers", "dlq", "graphs", "cli")

# Prints the top-level packages of all that was loaded.
PROGRAM = """
import importlib, sys
importlib.import_module(sys.argv[1])
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def loaded_with(module: str) -> set[str]:
    """The top-level packages that a fresh interpreter has loaded after importing the module alone."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, module], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return set(ran.stdout.split())


def test_no_file_makes_the_namespace_a_package_of_one_root() -> None:
    assert sorted(ROOT.glob("*/threadmill/__init__.py")) == []
    assert threadmill.__file__ is None


def test_every_part_is_found_in_its_own_root() -> None:
    assert {Path(path).parent.name for path in threadmill.__path__} == set(PARTS)
    for part in PARTS:
        assert (ROOT / part / "threadmill" / part / "__init__.py").is_file()
        assert (ROOT / part / "threadmill" / part / "py.typed").is_file()


@pytest.mark.parametrize("part", PARTS)
def test_each_part_imports_alone(part: str) -> None:
    assert "threadmill" in loaded_with(f"threadmill.{part}")


@pytest.mark.parametrize("module", ["threadmill.producers", "threadmill.dlq"])
def test_what_only_enqueues_or_replays_loads_no_langgraph(module: str) -> None:
    heavy = {"langgraph", "langchain", "langchain_core", "langsmith", "fastapi", "flower", "uvloop", "pytest"}
    assert loaded_with(module) & heavy == set()


@pytest.mark.parametrize(
    "module", ["threadmill.workers.worker", "threadmill.workers.executor", "threadmill.workers.checkpointer"]
)
def test_a_process_that_runs_graphs_rebuilds_no_types_but_their_own(module: str) -> None:
    program = (
        f"import {module}\n"
        "from langgraph.checkpoint.serde._msgpack import STRICT_MSGPACK_ENABLED as strict\n"
        "print(strict)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "True"
