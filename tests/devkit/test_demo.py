import io
import socket
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from devkit.demo import DemoError, choose_port, parse
from devkit.demo_tables import ConservationError, Readings, check_conservation, render
from devkit.processes import free_port
from devkit.traffic import Tally
from devkit.vllm_server import Progress, VllmOptions


def readings(slots: int = 40) -> Readings:
    measures = {"imbalance_ratio": 1.5, "dead": 1}
    none: dict[str, Any] = {"loads": [], "measures": None, "reason": "idle"}
    ranks = [{"dp_rank": 0, "tokens": 10, "steps": 3, "idle_steps": 1, "producers": [{"state": "counting"}]}]
    return Readings(
        ranks={"deployments": [{"dp_ranks": ranks}]},
        histogram={"tokens": 10, "layers": [{"layer": 1, "top_k": 4, "slots": slots}]},
        balance={
            "layers": [
                {
                    "layer": 1,
                    "tokens": 10,
                    "over_ep_ranks": {"loads": [30.0, 10.0], "measures": measures, "reason": None},
                    "over_experts": {"loads": [0.0, 30.0, 5.0, 5.0], "measures": measures, "reason": None},
                },
                {"layer": 2, "tokens": 0, "over_ep_ranks": none, "over_experts": none},
            ]
        },
    )


def test_computed_tokens_leave_out_cached_ones_and_the_last_of_each_request() -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}}
    tally = (
        Tally().plus(usage).plus({"prompt_tokens": 7, "completion_tokens": 1, "prompt_tokens_details": None})
    )
    assert tally == Tally(requests=2, prompt_tokens=17, cached_tokens=4, generated_tokens=6)
    assert tally.computed_tokens == (10 - 4 + 5 - 1) + 7


def test_conservation_is_exact() -> None:
    assert check_conservation(readings(), 10) == [
        "layer 1: 40 slots = 10 computed tokens x top-4 (conserved)"
    ]
    with pytest.raises(ConservationError, match="41 slots ≠ 10 computed tokens x top-4 = 40"):
        check_conservation(readings(slots=41), 10)


def test_no_layers_is_not_conservation() -> None:
    with pytest.raises(ConservationError, match="no layer"):
        check_conservation(Readings({}, {"layers": []}, {}), 0)


def test_tables_show_shares_ratio_hottest_expert_and_the_reason_for_no_sample() -> None:
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(render(readings()))
    text = console.export_text()
    for part in ("75.0%", "25.0%", "1.50", "1 (75.0%)", "idle", "counting"):
        assert part in text


def test_a_taken_port_that_was_asked_for_is_an_error_and_a_preferred_one_is_not() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        taken = server.getsockname()[1]
        with pytest.raises(DemoError, match=f"port {taken} is taken.*--port"):
            choose_port(taken, 0, "--port")
        assert choose_port(0, taken, "--port") != taken
    free = free_port()
    assert choose_port(0, free, "--port") == choose_port(free, 0, "--port") == free


@pytest.mark.parametrize("arguments", [["--requests", "0"], ["--concurrency", "-1"], ["--what"]])
def test_flags_that_make_no_sense_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        parse(arguments)
    assert error.value.code == 2
    assert "usage: make demo" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("(EngineCore_DP0 pid=8023) INFO 11-24 02:54:00 [core.py:133] Initializing", "Initializing"),
        ("WARNING 11-24 02:53:39 [cpu.py:224] Triton is", "Triton is"),
        ("Traceback (most recent call last):", "Traceback (most recent call last):"),
    ],
)
def test_progress_leaves_out_vllm_s_log_prefix(line: str, text: str) -> None:
    assert Progress(0.0, line).text == text


def test_options_become_the_command_line() -> None:
    options = VllmOptions(
        model=Path("m"), prefix_caching=False, max_num_batched_tokens=64, worker_class="a.B"
    )
    command = " ".join(options.command(8123))
    for part in ("serve m", "--port 8123", "--no-enable-prefix-caching", "--max-num-batched-tokens 64"):
        assert part in command
    assert "--worker-cls a.B" in command
    assert "--enable-expert-parallel" not in command
    assert "--worker-cls" not in " ".join(VllmOptions(model=Path("m")).command(1))
