"""Versions of pipelines: what changes them, and what does not."""

from __future__ import annotations

import pytest

from fp_async import versions

FILES = {
    "flow.py": "import helper\nfrom lists import (\n    a,  # one\n    b,\n)\n",
    "helper.py": "from . import deep, other as o\nimport os, tools.inner as t\n",
    "deep.py": "from pipelines.lower import x\nfrom pipelines import (\n    low_a,\n    low_b,\n)\n",
    "other.py": "x = 1\n",
    "lists.py": "from pipelines_own import y\n",
    "lower.py": "import flow\n",
    "low_a.py": "",
    "low_b.py": "",
    "pipelines_own.py": "",
    "tools/__init__.py": "from .inner import z\n",
    "tools/inner.py": "",
    "stranger.py": "",
    "_private.py": "",
}


@pytest.fixture
def root(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / "pipelines" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_names_are_the_files(root):
    found = sorted(name.removesuffix(".py") for name in FILES if "/" not in name and name[0] != "_")
    assert versions.names(root) == found


def test_a_version_is_the_same_on_two_machines(root, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "pipelines" / "tools").mkdir(parents=True)
    for name in reversed(FILES):
        (other / "pipelines" / name).write_text(FILES[name])
    found = versions.version(root, "flow")
    assert found == versions.version(other, "flow")
    assert len(found) == 16
    assert int(found, 16) >= 0
    assert versions.versions(root)["flow"] == found
    assert versions.versions(root).keys() == set(versions.names(root))


@pytest.mark.parametrize("name", [n for n in FILES if n not in ("stranger.py", "_private.py")])
def test_a_change_of_what_it_imports_is_another_version(root, name):
    before = versions.version(root, "flow")
    path = root / "pipelines" / name
    path.write_text(path.read_text() + "# changed\n")
    assert versions.version(root, "flow") != before


@pytest.mark.parametrize("name", ["stranger.py", "_private.py", "new.py"])
def test_a_change_of_anything_else_is_none(root, name):
    before = versions.version(root, "flow")
    (root / "pipelines" / name).write_text("# changed\n")
    assert versions.version(root, "flow") == before


def test_a_sibling_by_another_name_is_another_version(root):
    before = versions.version(root, "flow")
    (root / "pipelines" / "other.py").unlink()
    assert versions.version(root, "flow") != before


def test_what_is_not_there_or_cannot_be_read_has_none(root):
    assert versions.version(root, "unknown") is None
    assert versions.version(root / "nowhere", "flow") is None
    assert versions.versions(root / "nowhere") == {}
    (root / "pipelines" / "broken.py").write_bytes(b"import \xff\xfe, a\x00\n")
    assert versions.version(root, "broken") is not None
    (root / "pipelines" / "gone.py").symlink_to("/nonexistent")
    assert versions.version(root, "gone") is None
    assert "gone" not in versions.versions(root)
