from pathlib import Path

import pytest

from devkit.release import version
from devkit.release.checks import proven, unproven


def test_what_deploys_moescope_names_the_one_version() -> None:
    assert version.strays() == []
    named = [path.name for path, pattern in version.followers() if pattern.search(path.read_text())]
    assert {"Dockerfile", "docker-compose.yml", "moescope.yaml"} <= set(named)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "deploy").mkdir()
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "x"\nversion = "0.1.0"\n[tool.x]\nversion = "7"\n'
    )
    (tmp_path / "docker-compose.yml").write_text("image: moescope:0.1.0\nimage: prom/prometheus:3.1.0\n")
    (tmp_path / "Dockerfile.vllm").write_text(
        "# docker build -t registry/moescope-vllm:0.1.0 .\nFROM vllm:0.26.0\n"
    )
    (tmp_path / "deploy" / "Chart.yaml").write_text("apiVersion: v2\nversion: 0.1.0\nappVersion: 0.1.0\n")
    return tmp_path


def test_another_version_reaches_all_that_names_it_and_nothing_else(tree: Path) -> None:
    written = version.change("0.2.0", tree)
    assert len(written) == 4
    assert version.current(tree) == "0.2.0"
    assert version.strays(tree) == []
    assert 'version = "7"' in (tree / "pyproject.toml").read_text()
    assert (
        tree / "docker-compose.yml"
    ).read_text() == "image: moescope:0.2.0\nimage: prom/prometheus:3.1.0\n"
    assert (tree / "Dockerfile.vllm").read_text().splitlines()[1] == "FROM vllm:0.26.0"
    assert (
        tree / "deploy" / "Chart.yaml"
    ).read_text() == "apiVersion: v2\nversion: 0.2.0\nappVersion: 0.2.0\n"


def test_a_file_that_stayed_behind_is_named(tree: Path) -> None:
    (tree / "docker-compose.yml").write_text("image: moescope:0.0.9\n")
    assert version.strays(tree) == ["docker-compose.yml says 0.0.9, the version is 0.1.0"]


@pytest.mark.parametrize("wrong", ["0.0.9", "1.0", "v1.0.0", "1.0.0rc1", ""])
def test_what_cannot_follow_is_refused_and_nothing_written(tree: Path, wrong: str) -> None:
    with pytest.raises(version.VersionError):
        version.change(wrong, tree)
    assert version.current(tree) == "0.1.0"


def test_the_extra_asks_for_the_vllm_that_was_run(tmp_path: Path) -> None:
    assert unproven() == []
    assert (0, 26) in proven()
    text = (version.ROOT / "pyproject.toml").read_text()
    (tmp_path / "pyproject.toml").write_text(text.replace("vllm>=0.23,<0.34", "vllm>=0.22,<0.35"))
    assert unproven(tmp_path) == ["vllm>=0.22,<0.35 is not vllm>=0.23,<0.34"]
