import html
import re

import pytest

from devkit.architecture import PICTURES, SOURCE, THEMES, mark


@pytest.mark.parametrize("theme", THEMES)
def test_the_picture_is_of_the_text(theme: str) -> None:
    source, picture = SOURCE.read_text(), (PICTURES / f"architecture-{theme}.svg").read_text()
    assert picture.rstrip().endswith(mark(source)), "run `python -m devkit.architecture`"
    text = html.unescape(" ".join(re.findall(r"<text[^>]*>([^<]*)</text>", picture)))
    labels = [part for label in re.findall(r'label="([^"]*)"', source) for part in label.split("\\n")]
    assert len(labels) > 20
    assert not [label for label in labels if label not in text]
    assert not set(THEMES[theme]) & set(re.findall(r'="([A-Z]+)"', picture))
