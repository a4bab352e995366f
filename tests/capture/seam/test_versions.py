"""The rows of vLLM's release series, and what is said of a version that has none."""

from __future__ import annotations

import pytest

from moescope.capture.seam import versions


def test_the_row_of_the_installed_version_exists() -> None:
    assert versions.installed_row() is not None
    assert versions.why_untested() is None


@pytest.mark.parametrize("version", ["0.25.1", "1.0", "main", "dev"])
def test_other_versions_have_no_row(version: str) -> None:
    assert versions.seam_row(version) is None


def test_a_version_without_a_row_is_named_with_those_that_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "vllm_version", lambda: "9.9.0")
    assert versions.why_untested() == "not tested with vLLM 9.9.0 (tested: 0.26, 0.32)"
