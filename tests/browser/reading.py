"""What a page shows, as text: tables, tiles, numbers as it writes them, readouts of grids."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

from playwright.sync_api import Page

TIMES, TO, MINUS = "\N{MULTIPLICATION SIGN}", "\N{EN DASH}", "\N{MINUS SIGN}"
LEFT, TOP = 40, 20  # of the grid's labels, pixels


def cells(page: Page, table: str) -> list[list[str]]:
    """The texts of a table's cells, by row."""
    rows = page.get_by_role("table", name=table).locator("tbody tr")
    return rows.evaluate_all("rows => rows.map(r => [...r.children].map(c => c.textContent))")


def tile(page: Page, name: str) -> str:
    """The value of a tile."""
    return page.locator(".tile").filter(has=page.get_by_text(name, exact=True)).locator(".value").inner_text()


def compact(value: float) -> str:
    """As the page shortens numbers from ten thousand on."""
    for limit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= limit and value >= 1e4:
            tenths = (Decimal(value) / Decimal(limit)).quantize(Decimal("0.1"), ROUND_HALF_UP)
            return str(tenths).removesuffix(".0") + letter
    return f"{value:,.0f}"


def point(page: Page, label: str, row: float, column: float, rows: int, columns: int) -> str:
    """The readout for a cell."""
    canvas = page.get_by_role("application", name=label)
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    x = LEFT + (column + 0.5) * (box["width"] - LEFT) / columns
    y = TOP + (row + 0.5) * (box["height"] - TOP) / rows
    canvas.hover(position={"x": x, "y": y})
    return canvas.locator("xpath=following-sibling::p[1]").inner_text()
