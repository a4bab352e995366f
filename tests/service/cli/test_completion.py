"""`moescope completion`: what it prints makes real shells complete."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.service.cli.listing import every_command
from tests.service.cli.running import COMMAND, DEADLINE_S, run
from tests.service.conftest import Service
from tests.service.frames import frame, producer

# Each gives the words that the shell would offer for a line, as it would find them by Tab.
BASH = """
source <({command} completion bash)
COMP_LINE={line!r}; read -ra COMP_WORDS <<< "$COMP_LINE"
[ "${{COMP_LINE: -1}}" = ' ' ] && COMP_WORDS+=('')
COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
_moescope_completion moescope
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
ZSH = """
compdef() {{ : }}
_arguments() {{ print -r -- "$@" }}
_describe() {{ print -r -- "$@" }}
source <({command} completion zsh)
words=({line}); [[ {line!r} == *' ' ]] && words+=('')
CURRENT=$#words
_moescope_completion
"""
FISH = """
{command} completion fish | source
complete --do-complete {line!r}
"""
SHELLS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def offered(shell: str, line: str, tmp_path: Path, url: str = "http://127.0.0.1:1") -> str:
    """What a shell offers for a line whose last word is to be completed."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    script = SHELLS[shell].format(command=COMMAND, line=line)
    path = f"{Path(COMMAND).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "HOME": str(tmp_path), "MOESCOPE_URL": url}
    words = [shell, "-f", "-c", script] if shell == "zsh" else [shell, "-c", script]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=3 * DEADLINE_S, env=environment, check=False
    )
    assert done.stderr == "", done.stderr
    return done.stdout


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes_commands_and_names_of_the_service(
    shell: str, tmp_path: Path, service: Service
) -> None:
    found = offered(shell, "moescope st", tmp_path)
    assert ("stragglers" in found, "balance" in found) == (True, False)
    for server in ("prod-a", "prod-b", "other"):
        service.push(frame({3: [2, 2]}, who=producer(server=server, pool="chat", model="m/1")))
    found = offered(shell, "moescope balance --server prod", tmp_path, service.url)
    assert all(name in found for name in ("prod-a", "prod-b"))
    assert "other" not in found


def test_a_name_that_a_shell_would_evaluate_is_not_offered(tmp_path: Path, service: Service) -> None:
    for server in ("prod-a", "prod-$(reboot)", "prod-\\$(reboot)", "prod-;reboot", "prod-`reboot`"):
        service.push(frame({3: [2, 2]}, who=producer(server=server)))
    found = offered("bash", "moescope balance --server prod", tmp_path, service.url)
    assert found.split() == ["prod-a"]


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("moescope requests con", "concentrated"),
        ("moescope balance --min", "--min-tokens"),
        ("moescope balance -o ya", "yaml"),
    ],
)
def test_groups_options_and_values(line: str, word: str, tmp_path: Path) -> None:
    """The scripts of all shells ask the command itself in the same way, so one of them is enough."""
    assert offered("bash", line, tmp_path).split() == [word]


def test_without_a_service_no_name_is_offered_and_nothing_is_said(tmp_path: Path) -> None:
    assert offered("bash", "moescope balance --server prod", tmp_path).strip() == ""


def test_every_command_is_offered(tmp_path: Path) -> None:
    found = offered("bash", "moescope ", tmp_path).split()
    assert set(found) == {name.split()[0] for name in every_command()}


def test_another_shell_is_refused() -> None:
    assert run("completion", "csh").returncode == 2
