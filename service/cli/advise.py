"""The command ``moescope advise``."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlencode

import typer
from rich.text import Text

from moescope.service.cli.advice_tables import advice_view, rearrangements_view
from moescope.service.cli.terminal import terminal
from moescope.service.client.http import ServiceUnavailableError, get_bytes, get_json

ADVISE_HELP: Final = """Say whether another placement of experts is worth it, by what was really routed.

The first part of the window is what placements are fitted on; they are judged on the rest, which they have
not seen, against what the EP ranks really got there. Works whether EPLB is on or off.

Examples:

  moescope advise                             the last hour: fit on one half, check on the other

  moescope advise --start=-6h --fit-share 0.8

  moescope advise --redundant 0 --redundant 32   only these numbers of redundant experts

  moescope advise --nodes 4 --groups 8        keep the 8 expert groups of DeepSeek-V3 on their nodes

  moescope advise --ranks 64                  what if there were 64 EP ranks

  moescope advise --export placement.json     write the recommended placement, fitted on all of it

  moescope advise --rearrangements            with EPLB on: what each rearrangement promised and gave

  moescope advise --json | jq .verdict
"""
_TIMEOUT_S: Final = 120.0


class MapForm(StrEnum):
    """Forms of an exported placement."""

    MAP = "map"
    VLLM_ASCEND = "vllm-ascend"


def advise(
    url: Annotated[str, typer.Option(help="Address of the running service.")] = "http://127.0.0.1:9890",
    server: Annotated[str | None, typer.Option(help="vLLM deployment, when there are several.")] = None,
    model: Annotated[str | None, typer.Option(help="Model, when there are several.")] = None,
    start: Annotated[str, typer.Option(help="Begin of the window.")] = "-1h",
    end: Annotated[str | None, typer.Option(help="End of the window, as -1m; now when absent.")] = None,
    fit_share: Annotated[
        float, typer.Option(min=0.05, max=0.95, help="Share of the window to fit on; the rest checks.")
    ] = 0.5,
    ranks: Annotated[
        int | None, typer.Option(min=1, help="EP ranks; as many as there are when absent.")
    ] = None,
    nodes: Annotated[
        int | None, typer.Option(min=1, help="Nodes; as many as hosts report when absent.")
    ] = None,
    groups: Annotated[
        int, typer.Option(min=1, help="Expert groups of the router: n_group of the model's config.")
    ] = 1,
    redundant: Annotated[
        list[int] | None,
        typer.Option(min=0, help="Redundant experts to try; may be repeated; a sweep when absent."),
    ] = None,
    min_gain: Annotated[
        float, typer.Option(min=0, max=1, help="Least saving that is worth a change.")
    ] = 0.05,
    memory_price: Annotated[
        float, typer.Option(min=0, help="Saving that twice the memory for experts must bring.")
    ] = 0.1,
    min_tokens: Annotated[int | None, typer.Option(min=0, help="Fewer tokens are no sample.")] = None,
    rearrangements: Annotated[
        bool, typer.Option("--rearrangements", help="Show instead what past rearrangements by EPLB gave.")
    ] = False,
    layers: Annotated[bool, typer.Option("--layers", help="Show each layer too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the service's answer as JSON.")] = False,
    export: Annotated[
        Path | None,
        typer.Option(help="Write a placement map: the recommended one, or that of the one --redundant."),
    ] = None,
    form: Annotated[
        MapForm, typer.Option(help="Form of the map; vllm-ascend: expert_map_path.")
    ] = MapForm.MAP,
) -> None:
    """Print advice of a running service."""
    common: dict[str, str | None] = {"server": server, "model": model, "start": start, "end": end}
    common |= {
        name: None if value is None else str(value)
        for name, value in (
            ("ranks", ranks),
            ("nodes", nodes),
            ("groups", groups),
            ("min_tokens", min_tokens),
        )
    }
    wanted = urlencode([("redundant", number) for number in redundant or ()])
    path = f"/v1/advice{'?' if wanted else ''}{wanted}"
    console = terminal()
    try:
        if rearrangements:
            asked = {name: common[name] for name in ("server", "model", "min_tokens")}
            answer = get_json(url, "/v1/advice/rearrangements", asked, _TIMEOUT_S)
            console.print_json(data=answer) if as_json else console.print(rearrangements_view(answer))
            return
        with terminal(stderr=True).status(Text(f"asking {url}")):
            asked = {**common, "fit_share": str(fit_share), "min_gain": str(min_gain)}
            asked["memory_price"] = str(memory_price)
            answer = get_json(url, path, asked, _TIMEOUT_S)
        if as_json:
            typer.echo(json.dumps(answer, indent=2))
        else:
            console.print(advice_view(answer, layers))
        if export is not None:
            choice = _choice(answer, redundant)
            content = get_bytes(url, "/v1/advice/placement", {**common, **choice, "form": form}, _TIMEOUT_S)
            export.write_bytes(content)
            typer.echo(f"{export}: {len(content)} bytes, {choice['strategy']}", err=as_json)
    except ServiceUnavailableError as error:
        raise _failure(str(error)) from None
    except OSError as error:
        raise _failure(f"{export} can't be written: {error.strerror}") from None


def _choice(answer: dict[str, Any], redundant: list[int] | None) -> dict[str, str | None]:
    """Which placement to export."""
    verdict = answer["verdict"]
    if verdict["strategy"] is not None:
        return {"strategy": verdict["strategy"], "redundant": str(verdict["redundant"])}
    if redundant is not None and len(redundant) == 1:
        return {"strategy": "eplb", "redundant": str(redundant[0])}
    raise _failure("no placement is recommended, so none is exported: name one with a single --redundant")


def _failure(message: str) -> typer.Exit:
    typer.echo(f"moescope: {message}", err=True)
    return typer.Exit(2)
