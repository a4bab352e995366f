"""The documents' sessions at a shell print what they say; ``python -m tests.docs.console`` renews them."""

from __future__ import annotations

import difflib

from tests.docs.console import DOCUMENTS, renewed, run, sessions


def test_sessions_print_what_the_documents_say() -> None:
    texts = {path: path.read_text() for path in DOCUMENTS}
    told = run(texts.values())
    changed = [
        "".join(difflib.unified_diff(text.splitlines(True), renewed(text, told).splitlines(True), path.name))
        for path, text in texts.items()
    ]
    assert not any(changed), "\n".join(["run: python -m tests.docs.console", *changed])


def test_a_session_belongs_to_the_fleet_before_it() -> None:
    text = (
        "```sh\nmoescope serve\nmoescope simulate --ranks 2\n```\n"
        "```console\n$ moescope\nOK\n$ moescope ranks\n```\n"
        "<!-- of: moescope simulate --ranks 3 -->\n```console\n$ moescope\n```\n"
    )
    first, second = sessions(text)
    assert (first.fleet, first.commands) == ("moescope simulate --ranks 2", ["moescope", "moescope ranks"])
    assert (second.fleet, second.commands) == ("moescope simulate --ranks 3", ["moescope"])
    told = {
        (first.fleet, "moescope"): "a\n",
        (first.fleet, "moescope ranks"): "b\n",
        (second.fleet, "moescope"): "c\n",
    }
    assert "$ moescope\na\n$ moescope ranks\nb\n```" in renewed(text, told)
    assert renewed(text, told).endswith("```console\n$ moescope\nc\n```\n")
