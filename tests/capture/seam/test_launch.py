"""Which process started vLLM, and where its API listens."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from moescope.capture.seam.launch import Launch, find_launch, started_with
from tests.capture.seam.processes import ENGINE, SPAWNED, WORKER, proc

SERVE = ("/opt/venv/bin/python3", "/opt/venv/bin/vllm", "serve", "/models/m")


def launch_of(folder: Path, *lines: tuple[str, ...]) -> Launch:
    found = find_launch(proc(folder, lines)[1], folder)
    assert found is not None
    return found


@pytest.mark.parametrize(
    "between",
    [
        (),
        (ENGINE,),
        (ENGINE, WORKER),
        (SPAWNED, SPAWNED),  # titles are not set yet
        (("prod::EngineCore",), ("prod::Worker_TP1",)),  # VLLM_PROCESS_NAME_PREFIX
        (("python", "-c", "from multiprocessing.forkserver import main; main(3, 4)"), ENGINE, WORKER),
        (("VLLM::APIServer_DP3",), ENGINE),  # a rank of --data-parallel-multi-port-external-lb
        (SERVE, WORKER),  # forked, without a title
    ],
)
def test_vllms_own_processes_are_passed_over(tmp_path: Path, between: tuple[tuple[str, ...], ...]) -> None:
    found = launch_of(tmp_path, ("bash",), (*SERVE, "--port", "8001"), *between)
    assert found.is_server
    assert found.arguments[-1] in ("8001", "/models/m")


@pytest.mark.parametrize(
    ("arguments", "address"),
    [
        ((*SERVE, "--port", "8001"), "8001"),
        ((*SERVE, "--port=8002"), "8002"),
        ((*SERVE, "--port", "8001", "--port", "8003"), "8003"),
        (SERVE, "8000"),
        ((*SERVE, "--headless"), "8000"),
        ((*SERVE, "--uds", "/run/vllm/a.sock", "--port", "8001"), "/run/vllm/a.sock"),
        ((*SERVE, "--host", "10.0.0.4"), "10.0.0.4:8000"),
        ((*SERVE, "--host=10.0.0.5", "--port", "8001"), "10.0.0.5:8001"),
        ((*SERVE, "--host", "fd00:0::4", "--port", "8001"), "[fd00::4]:8001"),
        *(
            ((*SERVE, "--host", host), "8000")
            for host in ("0.0.0.0", "::", "127.0.0.1", "127.0.0.2", "::1", "localhost", "gpu-17", "")
        ),
        ((*SERVE, "--host", "10.0.0.4", "--port", "0"), None),
        (("python", "-m", "vllm.entrypoints.openai.api_server", "--port", "8004"), "8004"),
        (("python", "-m", "vllm.entrypoints.openai.api_server"), "8000"),
        (("python", "-m", "vllm.entrypoints.cli.main", "serve", "m"), "8000"),
        (("python", "-u", "/src/api_server.py"), "8000"),
        (("python", "-m", "dynamo.vllm", "--model", "m"), None),
        (("python", "my_server.py", "--port", "7000"), "7000"),
        (("python", "train.py", "--port", "0"), None),
        (("python", "train.py", "--port"), None),
        ((*SERVE, "--port", "0"), None),
        (("vllm-router", "serve"), None),
    ],
)
def test_where_it_listens(tmp_path: Path, arguments: tuple[str, ...], address: str | None) -> None:
    assert launch_of(tmp_path, arguments, ENGINE).address() == address


def test_sockets_of_one_name_in_two_folders_are_told_apart(tmp_path: Path) -> None:
    line = (*SERVE, "--uds", "./s.sock")
    for name in ("a", "b"):
        found = launch_of(tmp_path / name, line, ENGINE)
        (tmp_path / name / "100/cwd").rmdir()
        (tmp_path / name / "100/cwd").symlink_to(f"/srv/{name}")
        assert found.address() == f"/srv/{name}/s.sock"
    absolute = launch_of(tmp_path / "c", (*SERVE, "--uds", "/run/s.sock"), ENGINE)
    assert absolute.address() == "/run/s.sock"
    (tmp_path / "b/100/cwd").unlink()
    (tmp_path / "b/100/cwd").symlink_to(b"/srv/\xff")
    assert found.address() == "/srv/\ufffd/s.sock"
    (tmp_path / "b/100/cwd").unlink()
    assert found.address() == "./s.sock"  # the folder can't be told


def test_a_file_with_options_is_read_and_the_command_line_is_over_it(tmp_path: Path) -> None:
    found = launch_of(tmp_path, (*SERVE, "--config", "vllm.yaml"), ENGINE)
    (tmp_path / "100/cwd/vllm.yaml").write_text(
        "model: m\nport: 8123\nheadless: true\ndata_parallel_size: 2\nenforce-eager: false\n"
    )
    assert found.address() == "8123"
    assert found.options()["data-parallel-size"] == "2"
    assert "headless" in found.options()
    assert "enforce-eager" not in found.options()
    absolute = tmp_path / "other.yaml"
    absolute.write_text("port: 8124")
    found = launch_of(tmp_path / "b", (*SERVE, f"--config={absolute}"), ENGINE)
    assert found.address() == "8124"
    found = launch_of(tmp_path / "c", (*SERVE, f"--config={absolute}", "--port", "8125"), ENGINE)
    assert found.address() == "8125"


def test_a_pipe_is_never_waited_for(tmp_path: Path) -> None:
    found = launch_of(tmp_path, (*SERVE, "--config", "vllm.yaml"), ENGINE)
    os.mkfifo(tmp_path / "100/cwd/vllm.yaml")
    assert found.address() == "8000"
    with (tmp_path / "file").open("w+") as file:  # another one in each process
        file.write("port: 8001")
        file.flush()
        for folder in ("/dev/fd", "/proc/self/fd"):
            found = launch_of(tmp_path / folder[1:], (*SERVE, f"--config={folder}/{file.fileno()}"), ENGINE)
            assert found.address() == "8000"


@pytest.mark.parametrize("text", ["- a list", "port: [", "\0"])
def test_a_file_that_is_no_options_changes_nothing(tmp_path: Path, text: str) -> None:
    found = launch_of(tmp_path, (*SERVE, "--config", "vllm.yaml"), ENGINE)
    assert found.address() == "8000"  # there is no such file
    (tmp_path / "100/cwd/vllm.yaml").write_text(text)
    assert found.address() == "8000"


def test_what_cannot_be_told_is_nothing(tmp_path: Path) -> None:
    folder, worker = proc(tmp_path, [ENGINE, WORKER])
    assert find_launch(worker, folder) is None  # vLLM's all the way up
    assert find_launch(7, folder) is None
    assert find_launch(worker, tmp_path / "nowhere") is None
    (folder / str(worker) / "status").write_text("Name: x\n")
    assert find_launch(worker, folder) is None
    (folder / "100/status").write_text("PPid:\t101\n")  # a circle
    (folder / str(worker) / "status").write_text("PPid:\t100\n")
    assert find_launch(worker, folder) is None


PROGRAM = """
import multiprocessing, os
from moescope.capture.seam.launch import find_launch

def tell(pipe):
    pipe.send(find_launch(os.getpid()))

if __name__ == "__main__":
    for method in ("spawn", "fork", "forkserver"):
        context = multiprocessing.get_context(method)
        ours, theirs = context.Pipe()
        context.Process(target=tell, args=(theirs,)).start()
        found = ours.recv()
        print(found.address(), method == "fork" or found.pid == os.getpid())
"""


def test_on_this_machine_it_is_the_process_above_one_that_was_started_in_any_way(tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, path, "--port=7001"], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout.split() == ["7001", "True"] * 3, done.stderr


def test_a_variable_that_a_process_was_started_with(tmp_path: Path) -> None:
    folder, _ = proc(tmp_path, [SERVE], {"CUDA_VISIBLE_DEVICES": "2,3", "HOME": "/root"})
    assert started_with(100, "CUDA_VISIBLE_DEVICES", folder) == "2,3"
    assert started_with(100, "PATH", folder) is None
    with pytest.raises(OSError, match="No such file"):
        started_with(99, "PATH", folder)
