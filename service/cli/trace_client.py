"""The client of traces, as the settings of the environment say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from moescope.service.cli.codes import ExitCode, code_of_status
from moescope.service.cli.terminal import ending_at, failure
from moescope.service.client.settings import client_settings
from moescope.service.settings import SettingsError

if TYPE_CHECKING:
    from moescope.client import Client, TraceFilter


@contextmanager
def trace_client(url: str, timeout_s: float = 60.0) -> Iterator[Client]:
    """A client of the service at ``url``; the command ends where the service can't be asked or refuses."""
    # Here, so that the other commands don't wait for httpx and numpy.
    from moescope.client import Client, MoescopeError, ProblemError

    with ending_at(SettingsError):
        settings = client_settings()
        verify = settings.context() if url.startswith("https:") else False
        try:
            with Client(url, token=settings.bearer, verify=verify, timeout_s=timeout_s) as client:
                yield client
        except ProblemError as error:
            raise failure(str(error), code_of_status(error.status)) from None
        except MoescopeError as error:
            raise failure(str(error), ExitCode.UNREACHABLE) from None


def trace_filter(**fields: Any) -> TraceFilter:
    """A filter of these fields."""
    from moescope.client import TraceFilter

    return TraceFilter(**fields)
