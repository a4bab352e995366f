"""The command ``moescope completion``, and what completes the values of options."""

from __future__ import annotations

import shlex
from enum import StrEnum
from typing import Annotated, Any, Final

import typer
from typer._completion_classes import completion_init
from typer._completion_shared import get_completion_script

from moescope.service.cli.terminal import say
from moescope.service.client.http import ServiceUnavailableError, get_json
from moescope.service.client.settings import client_settings
from moescope.service.settings import SettingsError

COMPLETION_HELP: Final = """Print what a shell needs to complete commands, options and names.

It goes into a file that the shell reads at its start. Names of deployments, models and pools are asked of the
service that MOESCOPE_URL names, or --url before them.

Examples:

  moescope completion bash > ~/.local/share/bash-completion/completions/moescope

  moescope completion zsh > ~/.zfunc/_moescope     a folder of fpath: fpath+=~/.zfunc before compinit

  moescope completion fish > ~/.config/fish/completions/moescope.fish

  source <(moescope completion bash)               for this shell only
"""
_PATIENCE_S: Final = 1.0


class Shell(StrEnum):
    """Shells that can complete."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(shell: Annotated[Shell, typer.Argument(help="Which shell.")]) -> None:
    """Print the script of a shell."""
    say(get_completion_script(prog_name="moescope", complete_var="_MOESCOPE_COMPLETE", shell=shell.value))


def answer_shells() -> None:
    """Let the command line answer the scripts of :func:`completion`, which ask by the environment."""
    completion_init()


def server_names(context: typer.Context, incomplete: str) -> list[str]:
    """Deployments whose name begins so."""
    return _names(context, "server", incomplete)


def model_names(context: typer.Context, incomplete: str) -> list[str]:
    """Models whose name begins so."""
    return _names(context, "model", incomplete)


def pool_names(context: typer.Context, incomplete: str) -> list[str]:
    """Pools whose name begins so."""
    return _names(context, "pool", incomplete)


def _names(context: typer.Context, field: str, incomplete: str) -> list[str]:
    """What the deployments of the service have in this field; nothing where it can't be asked."""
    try:
        url = context.params.get("url") or client_settings().url
        answer: dict[str, Any] = get_json(url, "/v1/ranks", {}, _PATIENCE_S)
    except (ServiceUnavailableError, SettingsError):
        return []
    found = sorted({item[field] for item in answer.get("deployments", []) if item[field]})
    # Shells put a word into the line as it is, and zsh evaluates it: workers choose these names, so one that
    # would have to be quoted, such as $(reboot), is not offered.
    return [name for name in found if name.startswith(incomplete) and shlex.quote(name) == name]
