"""Whether vLLM's workers are extended, and what Ray is told to copy."""

from __future__ import annotations

import pytest

from moescope.capture.settings.attachment import attachment_wanted, carry_through_ray, set_here

PREFIXES = "VLLM_RAY_EXTRA_ENV_VAR_PREFIXES_TO_COPY"


@pytest.mark.parametrize("text", ["1", "true", " True ", "yes", "on"])
def test_it_is_wanted_also_where_the_value_is_wrong(text: str) -> None:
    """`yes` is no value: the worker says so, where a server without capture would say nothing."""
    assert attachment_wanted({"MOESCOPE": text})


@pytest.mark.parametrize("environment", [{}, {"MOESCOPE": ""}, {"MOESCOPE": "0"}, {"MOESCOPE": "False"}])
def test_it_is_off_by_default(environment: dict[str, str]) -> None:
    assert not attachment_wanted(environment)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "MOESCOPE"),
        ("", "MOESCOPE"),
        ("MY_", "MY_,MOESCOPE"),
        (" MY_ , OTHER_", "MY_,OTHER_,MOESCOPE"),
        ("MOESCOPE_", "MOESCOPE_,MOESCOPE"),
        ("MOESCOPE", "MOESCOPE"),
    ],
)
def test_rays_prefixes_get_ours(before: str | None, after: str) -> None:
    environment = {} if before is None else {PREFIXES: before}
    carry_through_ray(environment)
    carry_through_ray(environment)
    assert environment[PREFIXES] == after


def test_variables_of_ours_are_known() -> None:
    assert set_here({"MOESCOPE": "1"})
    assert set_here({"MOESCOPE_SERVER": "prod"})
    assert not set_here({"MOESCOPES": "1", "PATH": "/bin"})
