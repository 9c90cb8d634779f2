"""Whose a source file is, and what it is called on every machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import langgraph.pregel.main
import pytest

from threadmill.core import errors
from threadmill.graphs import Project, Registry
from threadmill.graphs.project import Place
from threadmill.graphs.samples import approval


@pytest.mark.parametrize(
    ("filename", "place"),
    [
        ("agent.py", Place("agent.py", True)),
        ("src/agent.py", Place("src/agent.py", True)),
        (".venv/lib/python3.12/site-packages/httpx/_client.py", Place("httpx/_client.py", False)),
        ("/usr/lib/python3/dist-packages/yaml/__init__.py", Place("yaml/__init__.py", False)),
        (json.__file__, Place("json/__init__.py", False)),
        (langgraph.pregel.main.__file__, Place("langgraph/pregel/main.py", False)),
        (errors.__file__, Place("threadmill/core/errors.py", False)),
        (approval.__file__, Place("threadmill/graphs/samples/approval.py", True)),
        ("<string>", Place("<string>", False)),
        ("<frozen importlib._bootstrap>", Place("<frozen importlib._bootstrap>", False)),
        ("<ipython-input /home/joe/x>", Place("<generated>", False)),
        ("/home/joe/template.html", Place("<generated>", False)),
        ("/nowhere/at/all.py", Place("all.py", True)),
    ],
)
def test_a_file_is_the_projects_or_a_librarys(tmp_path: Path, filename: str, place: Place) -> None:
    own = filename if filename.startswith(("/", "<")) else str(tmp_path / filename)
    assert Project(tmp_path).place(own) == place


def test_a_project_behind_a_link_is_named_alike(tmp_path: Path) -> None:
    (tmp_path / "releases" / "7").mkdir(parents=True)
    (tmp_path / "current").symlink_to(tmp_path / "releases" / "7")
    for folder in ("current", "releases/7"):
        for file in ("current/agent.py", "releases/7/agent.py"):
            assert Project(tmp_path / folder).place(str(tmp_path / file)) == Place("agent.py", True)


def test_a_folder_beside_the_project_is_named_by_its_own_name(tmp_path: Path) -> None:
    project = Project(tmp_path / "app", [tmp_path / "shared"])
    assert project.place(str(tmp_path / "shared" / "tools.py")) == Place("shared/tools.py", True)


def test_a_folder_that_only_begins_alike_is_another(tmp_path: Path) -> None:
    assert Project(tmp_path / "app").place(str(tmp_path / "app2" / "x.py")).file == "x.py"


def test_what_is_on_the_path_is_named_as_it_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    assert Project().place(str(tmp_path / "ours" / "tools.py")) == Place("ours/tools.py", True)


def installed(folder: Path, *names: str) -> Path:
    site = folder / "venv" / "site-packages"
    for name in names:
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text("graph = None")
    return site


@pytest.mark.parametrize(
    ("module", "files", "own", "other"),
    [
        ("ours.chat.graph", ["ours/__init__.py", "ours/chat/graph.py"], "ours/tools.py", "theirs/x.py"),
        ("space.ours.graph", ["space/ours/__init__.py"], "space/ours/tools.py", "space/theirs/x.py"),
    ],
)
def test_a_graph_that_is_installed_is_its_own_package(
    project: Any, tmp_path: Path, module: str, files: list[str], own: str, other: str
) -> None:
    site = installed(tmp_path, *files)
    sys.path.append(str(site))
    found = project.read(graphs={"agent": f"{module}:graph"}).project("agent")
    assert found.place(str(site / own)) == Place(own, True)
    assert found.place(str(site / other)) == Place(other, False)


def test_a_registry_knows_the_folders_of_a_graph(project: Any, tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "shared").mkdir()
    file = tmp_path / "app" / "langgraph.json"
    file.write_text(json.dumps({"graphs": {"a": "../other/a.py:graph"}, "dependencies": ["../shared"]}))
    found = Registry.read(file).project("a")
    assert found.place(str(tmp_path / "app" / "x.py")).file == "x.py"
    assert found.place(str(tmp_path / "other" / "a.py")).file == "other/a.py"
    assert found.place(str(tmp_path / "shared" / "x.py")).file == "shared/x.py"


@pytest.mark.parametrize("module", ["nowhere.at.all", "json", "threadmill.graphs.samples.approval"])
def test_a_module_without_a_package_of_its_own_needs_none(project: Any, module: str) -> None:
    found = project.read(graphs={"agent": f"{module}:graph"}).project("agent")
    assert not found.place(errors.__file__).own
