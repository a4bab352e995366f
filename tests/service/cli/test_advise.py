"""moescope advise, as its users run it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.service.cli.running import run
from tests.service.conftest import Service
from tests.service.traffic import push_fleet


def test_the_verdict_comes_first_then_the_options(service: Service) -> None:
    push_fleet(service, rounds=21, skew=0.8)
    done = run("advise", "--url", service.url, "--layers")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        "This rests on data of 630 s, where 3,600 s were asked for.\nWorth it: EPLB"
    )
    for words in (
        "linear placement",
        "the present placement",
        "EPLB with 8 redundant",
        "copies to move",
        "in vain",
    ):
        assert words in " ".join(done.stdout.split()), done.stdout
    assert "perfect balance would save" in " ".join(done.stdout.split())


def test_short_data_are_said_first(service: Service) -> None:
    push_fleet(service, skew=0.8)
    said = " ".join(run("advise", "--url", service.url).stdout.split())
    assert said.startswith("Too early to say: this rests on data of 300 s only")
    assert "Worth it" not in said


def test_json_is_the_services_answer_and_the_export_a_map(service: Service, tmp_path: Path) -> None:
    push_fleet(service, skew=0.8)
    file = tmp_path / "placement.json"
    done = run(
        "advise",
        "--url",
        service.url,
        "--redundant",
        "0",
        "--redundant",
        "4",
        "--json",
        "--export",
        str(file),
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert [item["redundant"] for item in answer["options"]] == [0, 0, 0, 4]
    assert json.loads(file.read_text())["num_physical_experts"] == 32 + answer["verdict"]["redundant"]
    assert str(file) in done.stderr


def test_nothing_recommended_is_nothing_exported_unless_named(service: Service, tmp_path: Path) -> None:
    push_fleet(service)
    file = tmp_path / "placement.json"
    done = run("advise", "--url", service.url, "--export", str(file))
    assert done.returncode == 7
    assert "name one with a single --redundant" in done.stderr
    assert not file.exists()
    named = ("--redundant", "4", "--form", "vllm-ascend", "--export", str(file))
    assert run("advise", "--url", service.url, *named).returncode == 0
    assert json.loads(file.read_text())["moe_layer_count"] == 3
    named = ("--redundant", "4", "--policy", "vllm", "--pp-rank", "0", "--export", str(file))
    assert run("advise", "--url", service.url, *named).returncode == 0
    assert json.loads(file.read_text())["policy"] == "vllm"


def test_rearrangements_are_a_table(service: Service) -> None:
    push_fleet(service, rounds=20, every=10.0, skew=0.3, rearrange_s=100)
    done = run("advise", "--url", service.url, "--rearrangements")
    assert done.returncode == 0, done.stderr
    assert "too few tokens after it" in " ".join(done.stdout.split())
    asked = run("advise", "--url", service.url, "--rearrangements", "--json")
    assert [item["version"] for item in json.loads(asked.stdout)["rearrangements"]] == [3, 2]


def test_what_is_wrong_is_said(service: Service) -> None:
    push_fleet(service, rounds=2)
    done = run("advise", "--url", service.url, "--redundant", "3")
    assert done.returncode == 2
    assert "redundant=0 or 4" in done.stderr
