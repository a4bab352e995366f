"""devkit/setup-env.sh, in the environment that runs this test: it has everything."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STAMP = ROOT / ".venv" / ".moescope-devkit"


def set_up(*arguments: str) -> subprocess.CompletedProcess[str]:
    # As from an active environment, whose Python is the first on the path.
    env = {"PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin", "HOME": str(Path.home())}
    script = ROOT / "devkit" / "setup-env.sh"
    return subprocess.run([script, *arguments], env=env, check=False, capture_output=True, text=True)


@pytest.mark.skipif(not STAMP.exists(), reason="the environment was not made by `make env`")
@pytest.mark.parametrize("level", ["service", "vllm", "all"])
def test_an_environment_that_has_more_than_is_asked_for_stays_as_it_is(level: str) -> None:
    before = STAMP.read_text()
    done = set_up(level)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert STAMP.read_text() == before
    assert before.startswith("all ")


def test_another_level_is_refused() -> None:
    done = set_up("everything")
    assert done.returncode == 1
    assert "there is no level 'everything': service, vllm or all" in done.stderr
