"""Commands that take their options in groups.

Typer knows only functions that have a parameter for each option. Here a command may also have a parameter
that is a dataclass, such as ``deployment: Deployment``: each of its fields is an option, and the command gets
the dataclass made of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from inspect import Parameter, Signature, signature
from typing import Any, get_type_hints

import typer

from moescope.service.cli.helping import flowing, sentence


def add_command(
    app: typer.Typer, command: Callable[..., None], help_text: str, name: str | None = None
) -> None:
    """Add a command, groups of options taken apart; its name is the function's unless one is given."""
    app.command(name=name, help=flowing(help_text), short_help=sentence(help_text))(Ungrouped(command))


class Ungrouped:
    """A command as typer wants it, with each field of a group as a parameter of its own.

    Raises:
        ValueError: two groups have a field of the same name.
    """

    def __init__(self, command: Callable[..., None]) -> None:
        hints = get_type_hints(command, include_extras=True)
        self._command = command
        self._groups = {name: kind for name, kind in hints.items() if _is_group(kind)}
        parameters = [
            flat
            for parameter in signature(command).parameters.values()
            for flat in _flat(parameter, hints[parameter.name])
        ]
        # Typer reads these four.
        self.__name__ = command.__name__
        self.__doc__ = command.__doc__
        self.__signature__ = Signature(parameters)
        self.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}

    def __call__(self, **values: Any) -> None:
        """Run the command."""
        groups = {
            name: kind(**{field.name: values.pop(field.name) for field in fields(kind)})
            for name, kind in self._groups.items()
        }
        self._command(**values, **groups)


def _flat(parameter: Parameter, kind: Any) -> Iterator[Parameter]:
    """The parameter itself, or one for each field of the dataclass that it is.

    All are keyword-only, because then one without a default may follow one that has a default.
    """
    if not _is_group(kind):
        yield parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=kind)
        return
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        default = Parameter.empty if field.default is MISSING else field.default
        yield Parameter(field.name, Parameter.KEYWORD_ONLY, default=default, annotation=hints[field.name])


def _is_group(kind: Any) -> bool:
    return isinstance(kind, type) and is_dataclass(kind)
