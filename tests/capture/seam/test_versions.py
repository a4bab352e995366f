"""Which versions were tested, and what is said of another."""

from __future__ import annotations

import pytest

from moescope.capture.seam import versions


def test_the_installed_version_is_one_that_was_tested() -> None:
    assert versions.why_untested() is None


@pytest.mark.parametrize("version", ["0.19.1", "0.34.0", "1.0", "main", "dev"])
def test_another_version_is_named_with_those_that_were_tested(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "vllm_version", lambda: version)
    assert versions.why_untested() == f"not tested with vLLM {version} (tested: 0.23 to 0.33)"


@pytest.mark.parametrize("version", ["0.24.0", "0.26.0+cpu", "0.32.1rc2.dev5+g0123abc"])
def test_a_release_belongs_to_its_series(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "vllm_version", lambda: version)
    assert versions.why_untested() is None
