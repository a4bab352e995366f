"""docs/answers.md has what the service answers; ``python -m tests.docs.answers`` writes it anew."""

from tests.docs.answers import PAGE, page, pretty, shortened


def test_the_examples_are_what_the_service_answers() -> None:
    assert page() == PAGE.read_text(), "run: python -m tests.docs.answers"


def test_lists_are_cut_and_say_so() -> None:
    assert shortened({"a": [{"b": 1}, {"b": 2}], "c": list(range(10)), "d": 1 / 3}) == {
        "a": [{"b": 1}, "... 1 more"],
        "c": [0, 1, 2, 3, 4, 5, 6, 7, "... 2 more"],
        "d": 0.3333,
    }


def test_what_fits_into_a_line_is_on_one() -> None:
    assert pretty({"a": [1, 2]}) == '{"a": [1, 2]}'
    assert pretty({"a": ["x" * 60, "y" * 60]}).splitlines()[:2] == ["{", '  "a": [']
