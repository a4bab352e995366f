"""Every expert of every layer against its fair share."""

from __future__ import annotations

import numpy as np

from moescope.service.report.facts import Facts
from moescope.service.report.heatmap import deviation, picture
from moescope.service.report.markup import Section


def section(facts: Facts) -> Section | None:
    """A heatmap with a row for each layer and a column for each expert; None without a sample."""
    layers = facts.balance["layers"]
    loads = [layer["over_experts"]["loads"] or [] for layer in layers]
    width = max(map(len, loads), default=0)
    if not width:
        return None
    cells = np.full((len(layers), width), np.nan)
    for row, mine in zip(cells, loads, strict=True):
        row[: len(mine)] = deviation(mine)
    first, last = layers[0]["layer"], layers[-1]["layer"]
    label = f"Heatmap: layers {first} to {last} by experts 0 to {width - 1}, load against fair share"
    return Section(
        "Experts",
        "A row a layer, a column a logical expert: its slots against the layer's mean. Hatched: no sample.",
        f"<figure class=heat><div class=rows><span>layer {first}</span><span>{last}</span></div>"
        f"{picture(cells, label)}"
        f"<figcaption><span>expert 0</span>"
        "<span class=scale>⅛ of fair <i></i> 8 times fair</span>"
        f"<span>{width - 1}</span></figcaption></figure>",
    )
