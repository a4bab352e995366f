"""`moescope traces`, as its users run it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from moescope.capture.wire.traces import TRACE_CONTENT_TYPE, TakenOver, encode_part
from moescope.client import Client
from tests.service.cli.running import Done, run
from tests.service.conftest import Service
from tests.service.trace_parts import experts_of, part


@pytest.fixture
def service(start_service: Callable[..., Service], tmp_path: Path) -> Service:
    """A service with traces x1 (two positions were cached) and x2."""
    made = start_service(store=tmp_path / "store")
    for trace in (part(1, tokens=4, runs=[(2, 4)], cached_tokens=2), part(2, tokens=7)):
        headers = {"content-type": TRACE_CONTENT_TYPE}
        assert made.client.post("/v1/traces", content=encode_part(trace), headers=headers).status_code == 200
    return made


def traces(service: Service, *arguments: str) -> Done:
    return run("traces", *arguments, "--url", service.url, columns=140)


def test_list(service: Service) -> None:
    done = traces(service, "list")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "ended" in line and "x" in line.split()[0]]
    assert [line.split()[0] for line in lines] == ["x2", "x1"]
    assert "more than 1" in traces(service, "list", "--limit", "1").stdout
    assert "No traces." in traces(service, "list", "--min-tokens", "8").stdout


def test_show(service: Service) -> None:
    done = traces(service, "show", "cmpl-x1", "--layer", "3", "--end", "4")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("not computed") == 2
    for row in experts_of(1, 4)[1][:2]:
        assert " ".join(str(expert) for expert in row) in done.stdout
    assert "layer 1 " not in done.stdout


def test_export(service: Service, tmp_path: Path) -> None:
    file = tmp_path / "x2.npz"
    assert traces(service, "export", "x2", str(file), "--layer", "1").returncode == 0
    np.testing.assert_array_equal(np.load(file)["routed_experts"][:, 0], experts_of(2, 7)[0])


def test_mistakes_are_explained(service: Service, tmp_path: Path) -> None:
    unknown = traces(service, "show", "nobody")
    assert unknown.returncode == 7
    assert "'nobody': it wasn't sampled (MOESCOPE_TRACE_RATE)" in unknown.stderr
    bad = traces(service, "export", "x1", str(tmp_path / "x1.txt"))
    assert bad.returncode == 2
    assert ".npz" in bad.stderr


def listed_and_shown(service: Service, name: str) -> list[str]:
    """What the commands print of a trace with this id."""
    headers = {"content-type": TRACE_CONTENT_TYPE}
    made = encode_part(part(3, name=name))
    assert service.client.post("/v1/traces", content=made, headers=headers).status_code == 200
    texts = []
    for arguments in (["list"], ["show", name]):
        done = traces(service, *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        texts.append(done.stdout)
    return texts


def test_ids_that_look_like_markup_stand_as_they_are(service: Service) -> None:
    name = "[/red]:smile:[bold]"
    assert all(name in text for text in listed_and_shown(service, name))


def test_ids_give_a_terminal_no_orders(service: Service) -> None:
    for text in listed_and_shown(service, "a\x1b[2Jb"):
        assert "\x1b" not in text
        assert "a\ufffd[2Jb" in text


def parts_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kind", ["parquet", "arrow", "ndjson"])
def test_many_go_into_a_folder(service: Service, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "exports"
    arguments = ("export", "--into", str(folder), "--format", kind, "--part-requests", "1")
    done = traces(service, *arguments)
    assert done.returncode == 0, done.stderr
    assert "2 requests, 11 tokens in 2 parts; that is all" in done.stdout
    assert parts_of(folder) == ["export.json", f"part-00001.{kind}", f"part-00002.{kind}"]
    if kind == "parquet":
        found = pq.read_table(folder / "part-00001.parquet")
        assert found["client_id"].to_pylist() == ["x2"] * 7
        assert found["layer_1"].to_pylist() == experts_of(2, 7)[0].tolist()
    again = traces(service, *arguments)
    assert "part-" not in again.stdout
    assert "that is all" in again.stdout
    other = traces(service, *arguments, "--min-tokens", "2")
    assert (other.returncode, "another question" in other.stderr) == (2, True)


def test_a_stopped_export_goes_on(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, whole, begun = tmp_path / "exports", Client.export_file, []

    def stopped(client: Client, file: Path, *arguments: Any, **named: Any) -> Any:
        begun.append(file.name)
        if len(begun) == 2:
            file.with_name(f"{file.name}.unfinished").write_bytes(b"half")
            raise KeyboardInterrupt
        return whole(client, file, *arguments, **named)

    monkeypatch.setattr(Client, "export_file", stopped)
    arguments = ("export", "--into", str(folder), "--part-requests", "1", "--start=-1000000h")
    done = traces(service, *arguments)
    assert (done.returncode, "goes on with part-00002.parquet" in done.stderr) == (130, True)
    assert (folder / "part-00001.parquet").exists()
    first = (folder / "part-00001.parquet").read_bytes()
    done = traces(service, *arguments)
    assert done.returncode == 0, done.stderr
    assert begun == ["part-00001.parquet", "part-00002.parquet", "part-00002.parquet"]
    assert "2 requests, 11 tokens in 2 parts" in done.stdout
    assert (folder / "part-00001.parquet").read_bytes() == first
    assert parts_of(folder) == ["export.json", "part-00001.parquet", "part-00002.parquet"]


@pytest.mark.parametrize("kind", ["parquet", "arrow", "ndjson"])
def test_what_is_left_out_is_told(service: Service, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "exports"
    arguments = ("--form", "vllm", "--decoder-layers", "5", "--format", kind)
    done = traces(service, "export", "--into", str(folder), *arguments)
    assert done.returncode == 0, done.stderr
    assert "1 of them left out or not whole" in done.stdout


def test_nothing_matches(service: Service, tmp_path: Path) -> None:
    done = traces(service, "export", "--into", str(tmp_path / "none"), "--server", "nobody")
    assert "0 requests, 0 tokens in 0 parts" in done.stdout
    assert parts_of(tmp_path / "none") == ["export.json"]


def test_a_folder_of_other_things_is_left_alone(service: Service, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("mine")
    done = traces(service, "export", "--into", str(tmp_path / "mine"))
    assert (done.returncode, "give a new folder" in done.stderr) == (2, True)
    (tmp_path / "mine" / "export.json").write_text("{")
    done = traces(service, "export", "--into", str(tmp_path / "mine"))
    assert (done.returncode, "can't be read" in done.stderr) == (2, True)


def test_one_or_many(service: Service, tmp_path: Path) -> None:
    for arguments in (["x1", "x.npz", "--into", "f"], ["x1"], []):
        done = traces(service, "export", *arguments)
        assert (done.returncode, "--into" in done.stderr) == (2, True)


def test_one_in_vllms_shape(service: Service, tmp_path: Path) -> None:
    file = tmp_path / "x2.npz"
    done = traces(service, "export", "x2", str(file), "--form", "vllm", "--decoder-layers", "4")
    assert done.returncode == 0, done.stderr
    assert np.load(file)["routed_experts"].shape == (7, 4, 4)


def test_how_a_request_ended_and_its_adapter(service: Service) -> None:
    assert "LoRA" not in traces(service, "list").stdout
    headers = {"content-type": TRACE_CONTENT_TYPE}
    made = encode_part(part(3, finish_reason="length", lora="sql"))
    assert service.client.post("/v1/traces", content=made, headers=headers).status_code == 200
    listed = traces(service, "list").stdout
    [line] = [line for line in listed.splitlines() if line.startswith("x3 ")]
    assert "ended: length" in line
    assert ("LoRA" in listed, line.split()[-1]) == (True, "sql")
    assert "ended: length, LoRA sql" in traces(service, "show", "x3").stdout


def test_whole_requests(service: Service, tmp_path: Path) -> None:
    """x4 took two positions over from x2."""
    headers = {"content-type": TRACE_CONTENT_TYPE}
    taken = [TakenOver(0, 2, "cmpl-x2-0-00000002")]
    made = encode_part(part(4, tokens=4, runs=[(2, 4)], cached_tokens=2, taken_over=taken))
    assert service.client.post("/v1/traces", content=made, headers=headers).status_code == 200
    file, folder = tmp_path / "x4.npz", tmp_path / "exports"
    assert traces(service, "export", "x4", str(file), "--joined").returncode == 0
    assert (np.load(file)["times_computed"] > 0).all()
    done = traces(service, "export", "--into", str(folder), "--joined")
    assert done.returncode == 0, done.stderr
    found = pq.read_table(folder / "part-00001.parquet")
    assert found["times_computed"].to_pylist() == [1] * 6 + [1] * 7 + [0, 0, 1, 1, 1, 1]
    assert "cmpl-x2-0-00000002" in str(found["joined"][0])
    other = traces(service, "export", "--into", str(folder))
    assert (other.returncode, "another question" in other.stderr) == (2, True)
