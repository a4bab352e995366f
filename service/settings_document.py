"""docs/settings.md, written from the settings: ``python -m moescope.service.settings_document``."""

from __future__ import annotations

import sys
from typing import Any, Final

from pydantic.fields import FieldInfo

from moescope.service.client.settings import ClientSettings
from moescope.service.settings import SERVE_FLAGS, Settings, default_of

_INTRODUCTION: Final = """# Settings of the service

`python -m moescope.service.settings_document > docs/settings.md` writes this document from the code
(`service/settings.py`, `service/client/settings.py`); a test compares the two. What is set in vLLM's
environment is in [capture.md](capture.md).

A setting is given as a flag of `moescope serve` where it has one, as a variable, or by its name in a TOML
file (`moescope serve --config moescope.toml`). A flag wins over the environment, and the environment wins
over the file. A name in the file that is no setting is refused. A variable that is no setting is ignored,
because variables of vLLM's workers have the same prefix. `moescope check-config` prints what would be used,
and warns of variables that nothing takes.

```toml
host = "0.0.0.0"
tokens_file = "/etc/moescope/tokens.toml"
store = "/var/lib/moescope"
keep_traces_s = 86400
```

| in the file | flag | variable | default | |
|---|---|---|---|---|
"""


_CLIENT: Final = """
## The commands that ask a service

`moescope balance`, `moescope top` and the other commands that ask a running service take these from the
environment ([the command line](cli.md)). Only the address has a flag: other users of the machine see a
command's arguments, so a token has none.

| variable | default | |
|---|---|---|
"""


def markdown() -> str:
    """The whole document."""
    service = "".join(_row(name, field) for name, field in Settings.model_fields.items())
    client = "".join(_client_row(name, field) for name, field in ClientSettings.model_fields.items())
    return f"{_INTRODUCTION}{service}{_CLIENT}{client}"


def _row(name: str, field: FieldInfo) -> str:
    flag = f"`--{name.replace('_', '-')}`" if name in SERVE_FLAGS else ""
    cells = (
        f"`{name}`",
        flag,
        f"`MOESCOPE_{name.upper()}`",
        _default(default_of(field)),
        field.description or "",
    )
    return f"| {' | '.join(cells)} |\n"


def _client_row(name: str, field: FieldInfo) -> str:
    return f"| `MOESCOPE_{name.upper()}` | {_default(field.default)} | {field.description} |\n"


def _default(value: Any) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case float():
            return f"{value:.15g}"
        case _:
            return str(value)


if __name__ == "__main__":
    sys.stdout.write(markdown())
