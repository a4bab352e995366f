"""The command ``moescope advise``."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from moescope.service.cli.advice_views import advice_view, rearrangements_view
from moescope.service.cli.asking import ask_working, download
from moescope.service.cli.codes import ExitCode
from moescope.service.cli.options import (
    Deployment,
    EndOption,
    MinTokensOption,
    StartOption,
    WeightsOption,
    weights_param,
)
from moescope.service.cli.output import Output, show
from moescope.service.cli.terminal import failure, say, working, write_file
from moescope.service.client.http import Parameters
from moescope.service.counts.weights import WeightsWish

ADVISE_HELP: Final = """Say whether another placement of experts is worth it, by what was really routed.

Placements are fitted on the first part of the window. They are judged on the rest, which they have not seen,
against what the EP ranks really got there. EPLB may be on or off.

Examples:

  moescope advise                             the last hour: fit on one half, check on the other

  moescope advise --start=-6h --fit-share 0.8

  moescope advise --redundant 0 --redundant 32   only these numbers of redundant experts

  moescope advise --nodes 4 --groups 8        keep the 8 expert groups of DeepSeek-V3 on their nodes

  moescope advise --ranks 64                  what if there were 64 EP ranks

  moescope advise --export placement.json     write our own placement for what is recommended, fitted on
                                              all of it: no two copies of an expert on one EP rank

  moescope advise --rearrangements            with EPLB on: what each rearrangement promised and gave

  moescope advise -o json | jq .verdict

The exit code is 7 where there are too few data to judge.
"""
_TIMEOUT_S: Final = 120.0
_UNDECIDED: Final = ("too_early", "no_sample")


class MapPolicy(StrEnum):
    """Whose placement by load is exported."""

    MOESCOPE = "moescope"
    VLLM = "vllm"


class MapForm(StrEnum):
    """Forms of an exported placement."""

    MAP = "map"
    VLLM_ASCEND = "vllm-ascend"


@dataclass(frozen=True, slots=True)
class Question:
    """The window, and the EP ranks that a placement is looked for."""

    start: StartOption = "-1h"
    end: EndOption = None
    ranks: Annotated[int | None, typer.Option(min=1, help="EP ranks; as many as there are when absent.")] = (
        None
    )
    nodes: Annotated[int | None, typer.Option(min=1, help="Nodes; as many as hosts report when absent.")] = (
        None
    )
    groups: Annotated[
        int, typer.Option(min=1, help="Expert groups of the router: n_group of the model's config.")
    ] = 1
    min_tokens: MinTokensOption = None
    weights: WeightsOption = WeightsWish.LATEST

    @property
    def params(self) -> Parameters:
        """What the requests for advice and for a placement have in common."""
        return {
            "start": self.start,
            "end": self.end,
            "ranks": self.ranks,
            "nodes": self.nodes,
            "groups": self.groups,
            "min_tokens": self.min_tokens,
            "weights": weights_param(self.weights),
        }


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is tried, and when it is worth it."""

    fit_share: Annotated[
        float,
        typer.Option(min=0.05, max=0.95, help="Share of the window's time to fit on; the rest checks."),
    ] = 0.5
    redundant: Annotated[
        list[int] | None,
        typer.Option(min=0, help="Redundant experts to try; may be repeated; a sweep when absent."),
    ] = None
    min_gain: Annotated[
        float, typer.Option(min=0, max=1, help="Least saving that is worth a change, as a share of 1.")
    ] = 0.05
    memory_price: Annotated[
        float,
        typer.Option(min=0, help="Saving that twice the memory for experts must bring, as a share of 1."),
    ] = 0.1

    @property
    def params(self) -> Parameters:
        """What only the request for advice has."""
        return {
            "fit_share": self.fit_share,
            "redundant": self.redundant,
            "min_gain": self.min_gain,
            "memory_price": self.memory_price,
        }


@dataclass(frozen=True, slots=True)
class Export:
    """What is written."""

    export: Annotated[
        Path | None,
        typer.Option(
            help="File to write a placement map to: the recommended one, or that of the one --redundant; "
            "none when absent."
        ),
    ] = None
    form: Annotated[
        MapForm, typer.Option(help="Form of the map; vllm-ascend: what its expert_map_path names.")
    ] = MapForm.MAP
    policy: Annotated[
        MapPolicy,
        typer.Option(
            help="Whose placement by load is written: our own, or what vLLM's EPLB would make, which may "
            "have several copies of an expert on one rank."
        ),
    ] = MapPolicy.MOESCOPE
    pp_rank: Annotated[
        int | None,
        typer.Option(min=0, help="Write only the layers of this pipeline stage; of all stages when absent."),
    ] = None

    @property
    def params(self) -> Parameters:
        """What the request for a map has of it."""
        return {"form": self.form.value, "policy": self.policy.value, "pp_rank": self.pp_rank}


def advise(
    deployment: Deployment,
    question: Question,
    judgement: Judgement,
    wanted: Export,
    output: Output,
    layers: Annotated[bool, typer.Option("--layers", help="Show each layer too.")] = False,
    rearrangements: Annotated[
        bool, typer.Option("--rearrangements", help="Show instead what past rearrangements by EPLB gave.")
    ] = False,
) -> None:
    """Print advice of a running service; the exit code tells where there are too few data to judge."""
    if rearrangements:
        params = {**deployment.params, "min_tokens": question.min_tokens}
        answer = ask_working(deployment.url, "/v1/advice/rearrangements", params, _TIMEOUT_S)
        show(output, answer, rearrangements_view)
        return
    params = {**deployment.params, **question.params, **judgement.params}
    answer = ask_working(deployment.url, "/v1/advice", params, _TIMEOUT_S)
    show(output, answer, partial(advice_view, with_layers=layers))
    if wanted.export is not None:
        choice = _choice(answer, judgement.redundant)
        params = {**deployment.params, **question.params, **choice, **wanted.params}
        with working(f"fitting {choice['strategy']}"):
            content = download(deployment.url, "/v1/advice/placement", params, _TIMEOUT_S)
        write_file(wanted.export, content)
        say(f"{wanted.export}: {len(content)} bytes, {choice['strategy']}", err=output.for_programs)
    elif answer["verdict"]["decision"] in _UNDECIDED:
        raise typer.Exit(ExitCode.NOT_KNOWN)


def _choice(answer: dict[str, Any], redundant: list[int] | None) -> dict[str, str | int]:
    """The placement to export: its strategy, and its number of redundant experts."""
    verdict = answer["verdict"]
    if verdict["strategy"] is not None:
        return {"strategy": verdict["strategy"], "redundant": verdict["redundant"]}
    if redundant is not None and len(redundant) == 1:
        return {"strategy": "eplb", "redundant": redundant[0]}
    raise failure(
        "no placement is recommended, so none is exported: name one with a single --redundant",
        ExitCode.NOT_KNOWN,
    )
