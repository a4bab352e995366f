"""Options that more than one command has: each is written here once.

The settings of `moescope serve` and of the client read the environment; of the options only --store does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from moescope.service.cli.completion import model_names, pool_names, server_names
from moescope.service.cli.terminal import ending_at, failure
from moescope.service.client.http import Parameters, address
from moescope.service.client.settings import DEFAULT_URL, client_settings
from moescope.service.counts.phase_split import Phase
from moescope.service.counts.weights import WeightsWish
from moescope.service.settings import SettingsError


def _checked(url: str, source: str) -> str:
    """The address of a service; the command ends if it is none, and names where it came from."""
    try:
        address(url)
    except ValueError as error:
        raise failure(f"{source}: {error}") from None
    return url


def url_of_flag(url: str) -> str:
    """The address that a flag gives; one that is none ends the command."""
    return _checked(url, "--url")


def url_of_environment() -> str:
    """The address of the service that the environment names, else the default; a bad one ends the command."""
    with ending_at(SettingsError):
        return _checked(client_settings().url, "MOESCOPE_URL")


UrlOption = Annotated[
    str,
    typer.Option(
        "--url",
        default_factory=url_of_environment,  # asked only where the flag is absent
        callback=url_of_flag,
        show_default=f"MOESCOPE_URL; without it {DEFAULT_URL}",
        help="Address of the running service, http or https.",
    ),
]
ServerOption = Annotated[
    str | None,
    typer.Option(help="vLLM deployment to ask about; the only one when absent.", autocompletion=server_names),
]
ModelOption = Annotated[
    str | None,
    typer.Option(help="Model to ask about; the only one when absent.", autocompletion=model_names),
]
PoolOption = Annotated[
    str | None,
    typer.Option(help="Only deployments of this pool; all when absent.", autocompletion=pool_names),
]
StartOption = Annotated[
    str | None,
    typer.Option(
        help="Begin of the window: so long ago, as -90s, -5m, -1h or -7d, or Unix time in seconds; all that "
        "is remembered when absent."
    ),
]
EndOption = Annotated[str | None, typer.Option(help="End of the window, as --start; now when absent.")]
MinTokensOption = Annotated[
    int | None,
    typer.Option(min=0, help="Fewer tokens are no sample; the service's own setting when absent."),
]
LayerOption = Annotated[
    list[int] | None,
    typer.Option(min=0, help="Only this decoder layer; may be repeated; all layers when absent."),
]
DpRankOption = Annotated[
    int | None, typer.Option(min=0, help="Only the tokens of this DP rank; of all when absent.")
]
PhaseOption = Annotated[
    Phase | None, typer.Option(help="Only tokens of this phase, prefill or decode; of both when absent.")
]
WeightsOption = Annotated[
    WeightsWish,
    typer.Option(help="Only what was counted since the weights were changed last (latest), or all of it."),
]
ConfigOption = Annotated[
    Path | None, typer.Option(help="TOML file with settings; none when absent: docs/settings.md.")
]
StoreOption = Annotated[
    str, typer.Option(envvar="MOESCOPE_STORE", metavar="<path>", help="Folder of the store.")
]


@dataclass(frozen=True, slots=True)
class Deployment:
    """A running service, and one of the deployments that report to it."""

    url: UrlOption
    server: ServerOption = None
    model: ModelOption = None

    @property
    def params(self) -> Parameters:
        """What a request names the deployment with."""
        return {"server": self.server, "model": self.model}


def weights_param(weights: WeightsWish) -> str | None:
    """What a request has of the option; None: the service's own default."""
    return None if weights is WeightsWish.LATEST else weights.value


@dataclass(frozen=True, slots=True)
class Watching:
    """Whether a command goes on, and how often it prints."""

    watch: Annotated[bool, typer.Option("--watch", help="Refresh until Ctrl-C.")] = False
    interval_s: Annotated[float, typer.Option(min=0.1, help="Time between refreshes, seconds.")] = 1.0

    @property
    def period_s(self) -> float | None:
        """Seconds between two prints; None: one print is all."""
        return self.interval_s if self.watch else None
