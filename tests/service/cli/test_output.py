"""``-o``: one answer in five forms, on terminals and in pipes."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
from collections.abc import Iterator

import pytest
import yaml
from rich.cells import cell_len

from moescope.capture.wire import MoeLayer
from moescope.capture.wire.traces import TRACE_CONTENT_TYPE, encode_part
from moescope.service.cli.output import Form, Output, show_again
from moescope.service.cli.sheets import Column, Sheet, View
from tests.service.cli.listing import every_command
from tests.service.cli.running import COMMAND, DEADLINE_S, plain, run, run_in_terminal
from tests.service.conftest import Clock, Service, open_service
from tests.service.trace_parts import part
from tests.service.traffic import push_fleet

SERVER = "prod-eu-west-1-deepseek-v3-decode-pool-a.example.com"
MODEL = "deepseek-ai/DeepSeek-V3-0324-a-long-name-of-a-model"
REQUEST = "chatcmpl-0b6f1f9e4f5c4f3a9d0e7c1f2a3b4c5d-of-a-client"
FRAMES = re.compile("[\u2500-\u257f]")
SHOWN = {
    "verdict": "/v1/verdict",
    "": "/v1/verdict",
    "ranks": "/v1/ranks",
    "pools": "/v1/pools",
    "pools chat": "/v1/pools/chat",
    "balance": "/v1/balance",
    "stragglers": "/v1/stragglers",
    "placement": "/v1/placement?form=tables",
    "placement --layer 3": "/v1/placement?form=copies&layer=3",
    "advise": "/v1/advice?start=-1h",
    "advise --rearrangements": "/v1/advice/rearrangements",
    "drift": "/v1/drift?start=-5m&baseline=previous_hour",
    "baseline list": "/v1/baselines",
    "traces list": "/v1/traces?limit=20",
    f"traces show {REQUEST}": f"/v1/traces/{REQUEST}?first=0&end=32",
    "requests unusual": "/v1/requests/unusual?limit=20",
    "requests concentrated": "/v1/requests/concentrated?limit=20",
    f"requests similar {REQUEST}": f"/v1/requests/similar?like={REQUEST}&limit=20",
}
"""Every command that shows an answer, and the question that has it."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A fleet of 8 EP ranks with long names, traces and a baseline; nothing changes it."""
    clock = Clock()
    made, end = open_service(clock, clock, store=tmp_path_factory.mktemp("store"), min_tokens=1)
    push_fleet(made, 25, server=SERVER, model=MODEL, pool="chat", ranks=8, skew=0.8)
    who = {"server": SERVER, "model": MODEL}
    shape = made.get("/v1/view")["layers"]
    layers = [MoeLayer(one["layer"], one["num_experts"], one["top_k"]) for one in shape[:2]]
    for number in (1, 2):
        name = REQUEST if number == 1 else "x2"
        trace = part(number, tokens=4, name=name, who=who, layers=layers)
        headers = {"content-type": TRACE_CONTENT_TYPE}
        assert made.client.post("/v1/traces", content=encode_part(trace), headers=headers).status_code == 200
    body = {"name": "release-1", "start": "-5m", "note": "before the new checkpoint came in"}
    assert made.client.post("/v1/baselines", json=body).status_code == 201
    yield made
    end()


def test_every_command_that_shows_an_answer_is_here() -> None:
    showing = {
        name
        for name, command in every_command().items()
        if any("--json" in parameter.opts for parameter in command.params)
    }
    assert showing == {" ".join(words) for words in map(_name, SHOWN)} - {""}


def _name(command: str) -> list[str]:
    words = command.split()
    return words[:2] if words[:1] in (["traces"], ["requests"], ["baseline"]) else words[:1]


@pytest.mark.parametrize("command", SHOWN)
def test_json_and_yaml_are_the_services_answer(service: Service, command: str) -> None:
    response = service.client.get(SHOWN[command])
    assert response.status_code == 200, response.text
    words = [*command.split(), "--url", service.url]
    answer = response.json()
    as_json = run(*words, "-o", "json")
    assert _same(json.loads(as_json.stdout), answer)
    assert _same(json.loads(run(*words, "--json").stdout), answer)
    as_yaml = run(*words, "--output", "yaml")
    assert _same(yaml.safe_load(as_yaml.stdout), answer)
    assert as_json.returncode == as_yaml.returncode == run(*words).returncode


def _same(shown: object, answer: object) -> bool:
    """Whether two answers are alike; ages differ, since they are of the machine's own clock."""
    if isinstance(shown, dict) and isinstance(answer, dict):
        return shown.keys() == answer.keys() and all(
            name.endswith("_seconds") or _same(shown[name], answer[name]) for name in shown
        )
    if isinstance(shown, list) and isinstance(answer, list):
        return len(shown) == len(answer) and all(map(_same, shown, answer))
    return shown == answer


@pytest.mark.parametrize("command", SHOWN)
def test_csv_has_columns_of_one_name_each_and_raw_values(service: Service, command: str) -> None:
    done = run(*command.split(), "--url", service.url, "-o", "csv")
    names, *rows = csv.reader(io.StringIO(done.stdout))
    assert len(set(names)) == len(names)
    assert all(re.fullmatch("[a-z][a-z0-9_]*", name) for name in names)
    assert all(len(row) == len(names) for row in rows)
    assert rows or command == "advise --rearrangements"
    assert not any(re.fullmatch(r"\d{1,3}(,\d{3})+|[\d.]+ ?%", cell) for row in rows for cell in row)


def test_csv_is_not_rounded(service: Service) -> None:
    rows = list(csv.DictReader(io.StringIO(run("balance", "--url", service.url, "-o", "csv").stdout)))
    layers = service.get("/v1/balance")["layers"]
    assert [int(row["layer"]) for row in rows] == [layer["layer"] for layer in layers]
    for row, layer in zip(rows, layers, strict=True):
        ratio = layer["over_ep_ranks"]["measures"]["imbalance_ratio"]
        assert float(row["imbalance_over_ep_ranks"]) == ratio
        assert [float(row[f"slots_ep_{rank}"]) for rank in range(8)] == layer["over_ep_ranks"]["loads"]
        assert (row["server"], row["model"]) == (SERVER, MODEL)


@pytest.mark.parametrize("form", ["table", "wide"])
@pytest.mark.parametrize("command", SHOWN)
def test_nothing_is_broken_or_cut(service: Service, command: str, form: str) -> None:
    """A pipe gets all of it; a terminal of 80 columns has the same numbers and names, each in one piece."""
    words = [*command.split(), "--url", service.url, "-o", form]
    piped = run(*words, columns=80)
    assert not FRAMES.search(piped.stdout)
    assert "\x1b" not in piped.stdout
    shown = run_in_terminal(*words, columns=80)
    assert shown.returncode == piped.returncode
    text = re.sub("[\u2800-\u28ff] .*? \\.\\.\\.\r?", "", plain(shown.stdout))  # progress
    for line in text.splitlines():
        assert cell_len(line) <= 80 or max(map(len, line.split())) > 50, "only a long name may be wider"
    text = re.sub(r"- no room for .*? shows\s+all", "", text, flags=re.DOTALL)
    text = re.sub(r"\b(server|model|state|deployment): ", "", text)  # said once for all rows
    pieces = {piece for piece in re.split(r"[\s│┃]+", text) if re.search(r"\w", piece)}
    assert pieces <= set(piped.stdout.split())


def test_a_terminal_says_what_it_has_no_room_for_and_wide_shows_it(service: Service) -> None:
    words = ["balance", "--url", service.url, "--layer", "3"]
    narrow = plain(run_in_terminal(*words, columns=80).stdout)
    assert "no room for EP 0 to EP 7" in narrow
    wide = plain(run_in_terminal(*words, "-o", "wide", columns=80).stdout)
    for cell in run(*words).stdout.splitlines()[2].split():
        assert re.search(rf"(?<![\d,.]){re.escape(cell)}(?![\d,.])", wide), cell
    assert max(map(cell_len, wide.splitlines())) <= 80


def test_colours_are_for_terminals_that_want_them(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    colour = re.compile(r"\x1b\[[0-9;]*3\d")
    words = ["verdict", "--url", service.url]
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert colour.search(run_in_terminal(*words, color=True).stdout)
    assert not colour.search(run_in_terminal(*words).stdout)  # with NO_COLOR
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in run(*words).stdout


def test_an_answer_for_each_replica_of_a_pool(service: Service) -> None:
    words = ["balance", "--pool", "chat", "--url", service.url]
    [answer] = json.loads(run(*words, "-o", "json").stdout)
    assert answer["layers"] == service.get("/v1/balance")["layers"]
    assert run(*words, "-o", "csv").stdout == run("balance", "--url", service.url, "-o", "csv").stdout


@pytest.mark.parametrize("form", ["json", "yaml", "csv", "table"])
def test_watching_in_a_pipe_gives_one_answer_after_the_other(service: Service, form: str) -> None:
    command = [COMMAND, "balance", "--layer", "3", "--url", service.url, "--watch", "--interval-s", "0.1"]
    process = subprocess.Popen([*command, "-o", form], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if sum(SERVER in one for one in lines) == 3:
            break
    process.kill()
    process.communicate(timeout=DEADLINE_S)
    if form == "json":
        assert [json.loads(line)["server"] for line in lines] == [SERVER] * 3
    if form == "yaml":
        assert lines.count("---\n") == 3
    if form == "csv":
        rows = list(csv.DictReader(lines))
        assert [row["layer"] for row in rows] == ["3"] * 3
        assert float(rows[0]["at"]) < float(rows[2]["at"])


def test_csv_loses_no_column_that_comes_later(capsys: pytest.CaptureFixture[str]) -> None:
    """As where a deployment grows to more EP ranks while it is watched."""
    answers = iter([["a"], ["a", "b"], ["a"]])

    def ask() -> list[str]:
        try:
            return next(answers)
        except StopIteration:
            raise KeyboardInterrupt from None

    def view(names: list[str]) -> View:
        return View((Sheet("", [Column(name, name) for name in names], [[7] * len(names)]),))

    show_again(Output(Form.CSV), ask, view, 0.0)
    lines = [line.split(",") for line in capsys.readouterr().out.splitlines()]
    assert [line[1:] for line in lines] == [["a"], ["7"], ["a", "b"], ["7", "7"], ["7", ""]]


def test_a_report_prints_what_it_is_made_of(service: Service) -> None:
    done = run("report", "--url", service.url, "--since", "10m", "-o", "json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["balance"]["server"] == SERVER
    assert set(facts) >= {"balance", "trend", "ranks", "stragglers", "advice"}
    assert (
        yaml.safe_load(run("report", "--url", service.url, "-o", "yaml").stdout)["balance"]["model"] == MODEL
    )
    refused = run("report", "--url", service.url, "-o", "csv")
    assert (refused.returncode, "a file, json or yaml" in refused.stderr) == (2, True)
