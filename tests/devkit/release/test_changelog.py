from pathlib import Path

import pytest

from devkit.release.changelog import complaints, released, unreleased

TEXT = """# Changelog

The form is that of Keep a Changelog.

## [Unreleased]

### Added

- A thing.
"""


def test_a_release_gets_what_was_unreleased() -> None:
    made = released(TEXT, "1.2.0", "2026-01-31")
    assert complaints(made) == []
    assert unreleased(made) == ""
    assert "## [Unreleased]\n\n## [1.2.0] - 2026-01-31\n\n### Added\n\n- A thing." in made


def test_nothing_is_released_twice_or_without_a_word() -> None:
    made = released(TEXT, "1.2.0", "2026-01-31")
    with pytest.raises(ValueError, match="nothing under"):
        released(made, "1.3.0", "2026-02-01")
    again = made.replace("## [Unreleased]\n", "## [Unreleased]\n\n### Fixed\n\n- More.\n")
    with pytest.raises(ValueError, match=r"has 1\.2\.0 already"):
        released(again, "1.2.0", "2026-02-01")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("## Unreleased\n", "1: '## Unreleased' is neither"),
        ("## [1.2] - 2026-01-31\n", "1: '## [1.2] - 2026-01-31' is neither"),
        ("## [Unreleased]\n\n### News\n", "3: '### News' is none of Added"),
        ("## [Unreleased]\n\n- A thing.\n", "3: stands below no kind of change"),
    ],
)
def test_another_form_is_named(text: str, line: str) -> None:
    (complaint,) = complaints(text)
    assert complaint.startswith(line)


def test_nothing_is_said_twice_or_above_all_versions() -> None:
    """Merges leave both: what stands above is in the notes of no release."""
    said = "- A change whose first line is long enough that none is like it by chance.\n"
    (above,) = complaints(f"# Changelog\n\n{said}\n## [Unreleased]\n")
    assert above.startswith("3: stands above all versions")
    (twice,) = complaints(f"## [Unreleased]\n\n### Added\n\n{said}\n### Fixed\n\n{said}")
    assert twice.startswith("9: is said twice")


def test_our_own_has_that_form() -> None:
    assert complaints((Path(__file__).parents[3] / "CHANGELOG.md").read_text()) == []
