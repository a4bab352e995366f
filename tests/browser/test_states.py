"""Every state that is not numbers says what to do, and ends by itself when its cause does."""

from __future__ import annotations

import re
from itertools import pairwise

from playwright.sync_api import Route, expect

from moescope.capture import wire
from tests.browser.chrome import Watched
from tests.browser.serving import Clock, Serving
from tests.service.frames import frame, halves, producer


def _frame(clock: Clock, seq: int = 1, **fields: object):  # type: ignore[no-untyped-def]
    clock.now += 1
    made = {"placement": halves(4, 1), "epoch": int((clock.now - seq) * 1e9), **fields}
    return frame({1: [400, 100, 50, 50]}, who=producer(ep_size=2), seq=seq, **made)


def test_empty_until_the_first_frame(empty: Serving, clock: Clock, watched: Watched) -> None:
    page = watched.open(empty.url)
    expect(page.get_by_role("heading", name="No model has reported yet")).to_be_visible()
    command = page.locator("pre").inner_text()
    assert command.startswith(f"MOESCOPE=1 MOESCOPE_ENDPOINT={empty.url} ")
    assert watched.axe() == []
    empty.push(_frame(clock))
    expect(page.locator(".tile").first).to_be_visible()
    expect(page.locator("#status")).to_have_text("Live")


def test_loading_until_the_first_answer(empty: Serving, watched: Watched) -> None:
    held: list[Route] = []
    watched.page.route("**/v1/ranks", lambda route: held.append(route))
    watched.page.goto(empty.url)
    watched.page.wait_for_selector("#views a")
    watched.page.wait_for_function("document.querySelector('[data-state=loading]') !== null")
    assert watched.axe() == []
    for route in held:
        route.continue_()
    watched.page.unroute("**/v1/ranks")
    expect(watched.page.locator("[data-state=empty]")).to_be_visible()


def test_an_error_says_what_it_is_and_can_be_retried(clock: Clock, watched: Watched) -> None:
    broken = [True]

    def failing() -> float:
        if broken:
            raise RuntimeError("no clock")
        return clock()

    watched.expected = ["500", "ERR_INCOMPLETE_CHUNKED_ENCODING"]
    broken.clear()
    with Serving(failing) as serving:
        serving.push(_frame(clock))
        broken.append(True)
        page = watched.open(serving.url)
        message = page.get_by_role("alert").filter(has_text="The service failed")
        expect(message).to_be_visible()
        expect(message).to_contain_text("report it")
        assert watched.axe() == []
        with page.expect_request("**/v1/ranks"):
            page.get_by_role("button", name="Try again").click()
        expect(message).to_be_visible()
        broken.clear()
        expect(page.locator(".tile").first).to_be_visible()
        page.goto("about:blank")  # it asks no more when the service ends


def test_a_deployment_that_is_not_there(large: Serving, watched: Watched) -> None:
    page = watched.open(large.url, "#/overview?server=elsewhere")
    expect(page.get_by_role("heading", name="No such deployment")).to_be_visible()
    page.get_by_label("Model", exact=True).select_option(index=0)
    expect(page.locator(".tile").first).to_be_visible()


def test_disconnected_keeps_the_last_numbers_and_comes_back(
    empty: Serving, clock: Clock, watched: Watched
) -> None:
    watched.expected = ["Failed to load resource", "net::ERR"]
    empty.push(_frame(clock))
    page = watched.open(empty.url)
    expect(page.locator("#status")).to_have_text("Live")
    empty.stop()
    expect(page.locator("#status")).to_have_text("Disconnected")
    expect(page.get_by_role("alert")).to_contain_text("check that moescope serve runs")
    expect(page.locator(".tile").first).to_be_visible()
    assert watched.axe() == []
    empty.start()
    empty.push(_frame(clock))
    expect(page.locator("#status")).to_have_text("Live")
    expect(page.get_by_role("alert")).to_have_count(0)


def test_ranks_say_whether_they_are_live_stale_restarted_or_disabled(
    empty: Serving, clock: Clock, watched: Watched
) -> None:
    for rank in range(4):
        who = producer(dp_rank=rank, dp_size=5, ep_rank=rank, ep_size=4)
        state = {"state": "disabled", "state_reason": "an unknown layout"} if rank == 3 else {}
        empty.push(frame({1: [40, 40, 40, 40]}, who=who, placement=halves(4, 1, 4), **state))
    clock.now += 100
    for rank in (0, 2):
        who = producer(dp_rank=rank, dp_size=5, ep_rank=rank, ep_size=4)
        again = {"epoch": int(clock.now * 1e9)} if rank == 2 else {"seq": 2}
        empty.push(frame({1: [60, 60, 60, 60]}, who=who, placement=halves(4, 1, 4), **again))
    page = watched.open(empty.url, "#/overview?window=all")
    rows = page.get_by_role("table", name="Tokens per second of each DP rank").locator("tbody tr")
    assert [row.locator(".tag").inner_text() for row in rows.all()] == [
        "stale",  # the worst first
        "stale",
        "live, restarted",
        "live",
    ]
    health = page.locator(".health").inner_text()
    assert re.search(r"DP rank 4 never reported", health)
    assert re.search(r"DP rank 1, 3 fell silent|DP rank 1,3 fell silent", health)
    assert "1 restart of workers" in health
    assert watched.axe() == []


def test_a_worker_that_never_counted_is_there_with_the_reason(
    empty: Serving, clock: Clock, watched: Watched
) -> None:
    told = {"state": "disabled", "state_reason": "ImportError: no msgspec", "tokens": 0, "steps": 0}
    empty.push(frame({}, epoch=int(clock.now * 1e9), **told))
    page = watched.open(empty.url)
    expect(page.locator(".health")).to_contain_text("Capture is off on DP rank 0: ImportError: no msgspec")
    expect(page.get_by_text("No model has reported yet")).to_have_count(0)
    models = page.get_by_role("region", name="Models").locator("tbody tr")
    assert models.locator("td").nth(3).inner_text() == "\u2013"
    for view in ("heatmap", "ranks", "compare"):
        watched.open(empty.url, f"#/{view}")
        expect(page.locator("main")).not_to_contain_text("This page failed")
    assert watched.axe() == []


def test_an_idle_window_has_no_sample_rather_than_zeros(
    empty: Serving, clock: Clock, watched: Watched
) -> None:
    empty.push(_frame(clock))
    clock.now += 5
    empty.push(_frame(clock, seq=7, epoch=int((clock.now - 6) * 1e9)))
    clock.now += 1
    page = watched.open(empty.url, "#/heatmap?from=1&to=2")
    expect(page.get_by_text("No tokens in this window")).to_be_visible()
    expect(page.locator("#status")).to_have_text("Past window")
    watched.route("#/overview?from=1&to=2")
    expect(page.locator(".tile", has_text="Imbalance over EP ranks").locator(".value")).to_have_text(
        "\N{EN DASH}"
    )


def test_a_lone_sample_between_gaps_shows(empty: Serving, clock: Clock, watched: Watched) -> None:
    epoch = int(clock.now * 1e9)
    for seq in range(1, 61):
        slots = 400 * (1 + (seq > 30))  # tokens in one interval only
        counts = {1: [slots, slots // 4, slots // 8, slots // 8]}
        placed = halves(4, 1)
        made = frame(counts, who=producer(ep_size=2), seq=seq, epoch=epoch, placement=placed, after_s=2 * seq)
        empty.push(made)
        clock.now += 2
    known = [value is not None for value in empty.get("/v1/trend", step=5, points=60)["worst"]]
    assert any(known)
    assert not any(map(all, pairwise(known)))
    page = watched.open(empty.url)
    chart = page.get_by_role("img", name="Imbalance ratio over EP ranks over time")
    expect(chart.locator("canvas")).to_be_visible()
    of_the_line = """canvas => {
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      let found = 0;
      for (let i = 0; i < data.length; i += 4)
        found += data[i] === 213 && data[i + 1] === 94 && data[i + 2] === 0;
      return found > 3;
    }"""
    page.wait_for_function(of_the_line, arg=chart.locator("canvas").element_handle())


def test_a_model_without_layers_has_no_layer_to_show(empty: Serving, clock: Clock, watched: Watched) -> None:
    hidden = [wire.UncoveredLayer(layer=1, reason="of a test")]
    empty.push(frame({}, uncovered=hidden, tokens=5, epoch=int(clock.now * 1e9)))
    page = watched.open(empty.url, "#/layer")
    expect(page.get_by_text("No MoE layer can be seen.")).to_be_visible()
    assert "undefined" not in page.locator("main").inner_text()


def test_layers_that_are_not_there_or_not_seen(large: Serving, watched: Watched) -> None:
    page = watched.open(large.url, "#/layer?layer=60&window=all")
    expect(page.get_by_text("This layer can't be seen: simulated.")).to_be_visible()
    watched.route("#/layer?layer=1&window=all")
    expect(page.get_by_text("There is no MoE layer 1.")).to_be_visible()


def test_nothing_to_compare(large: Serving, watched: Watched) -> None:
    page = watched.open(large.url, "#/compare?from=1700000050&to=1700000060&base=previous")
    expect(page.get_by_role("table", name="Divergence of each layer")).to_be_visible()
    watched.route("#/compare?from=1699999000&to=1699999100")
    expect(page.get_by_text("Nothing to compare")).to_be_visible()


def test_scripts_off(browser, large: Serving) -> None:  # type: ignore[no-untyped-def]
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(large.url)
    assert "needs JavaScript" in page.locator("main").inner_text()
    context.close()


def test_counts_that_do_not_add_up_are_a_banner_above_every_view(
    empty: Serving, clock: Clock, watched: Watched
) -> None:
    # TP rank 1 drops layer 3: over both workers it has half of the rows.
    for tp_rank in range(2):
        who = producer(tp_rank=tp_rank, tp_size=2, ep_rank=tp_rank, ep_size=2)
        counts = {1: [40, 40, 10, 10], 3: [40, 40, 10, 10] if tp_rank == 0 else [0, 0, 0, 0]}
        empty.push(frame(counts, who=who, tokens=100, placement=halves(4, 2)))
    page = watched.open(empty.url, "#/overview?window=all")
    banner = page.locator("#broken")
    expect(banner).to_have_text(
        "Counts don't add up: layer 3 of DP rank 0 has 50 of 100 tokens. What rests on "
        "these counts is wrong or left out."
    )
    expect(page.locator(".health")).to_contain_text("Counts don't add up in 1 place")
    assert watched.axe() == []
    watched.route("#/heatmap?window=all")
    expect(banner).to_be_visible()


def test_a_part_of_a_deployment_is_a_banner_and_gone_ranks_are_no_fault(
    empty: Serving, clock: Clock, watched: Watched
) -> None:
    for name, ranks in (("a", (0, 1)), ("b", (2, 3))):
        for rank in ranks:
            who = producer(server=name, dp_rank=rank, dp_size=4, ep_rank=rank, ep_size=4)
            empty.push(frame({1: [40, 40, 40, 40]}, who=who, placement=halves(4, 1, 4)))
    page = watched.open(empty.url, "#/overview?window=all&server=a")
    banner = page.locator("#part")
    expect(banner).to_contain_text(
        "This is a part: of 4 DP ranks [2, 3] never reported; server=b has DP ranks 2, 3"
    )
    expect(page.locator(".health")).to_contain_text("server=b has DP ranks 2, 3")
    assert watched.axe() == []
    clock.now += 3
    who = producer(server="a")
    empty.push(frame({1: [40, 40, 40, 40]}, who=who, epoch=int(clock.now * 1e9)))
    page.reload()
    expect(banner).to_be_hidden()
    rows = page.get_by_role("table", name="Tokens per second of each DP rank").locator("tbody tr")
    gone = rows.filter(has=page.get_by_role("rowheader", name="1", exact=True))
    expect(gone.locator(".tag")).to_have_text("gone")
    expect(page.locator(".health")).to_contain_text("Every worker reports.")


def test_what_cannot_be_compared_is_not_called_healthy(
    empty: Serving, clock: Clock, watched: Watched
) -> None:
    who = producer(tp_rank=0, tp_size=2, ep_size=2)
    empty.push(frame({1: [40, 40, 10, 10]}, who=who, tokens=100, placement=halves(4, 1)))
    page = watched.open(empty.url, "#/overview?window=all")
    health = page.locator(".health")
    expect(health).to_contain_text(
        "It is not known whether the counts of DP rank 0 add up: TP rank 1 has not reported"
    )
    expect(health).not_to_contain_text("Counts add up")
    expect(page.locator("#broken")).to_be_hidden()


def test_absent_layers_are_said_first(empty: Serving, clock: Clock, watched: Watched) -> None:
    lacks = [
        wire.UncoveredLayer(layer=layer, reason="nothing that routes was found in it") for layer in (2, 4)
    ]
    epoch = int(clock.now * 1e9)
    empty.push(frame({1: [4, 4]}, absent=lacks, absent_unnamed="others are not found", epoch=epoch))
    page = watched.open(empty.url)
    said = (
        "Layers 2, 4 of the model's config were not found, and nothing here counts them: nothing that routes"
    )
    expect(page.get_by_role("definition").filter(has_text=said)).to_be_visible()  # the tile Capture
    expect(page.get_by_role("listitem").filter(has_text=said)).to_be_visible()
    expect(page.get_by_text("MoE layers of the model's config were not found")).to_be_visible()
    watched.route("#/layer?layer=4&window=all")
    expect(page.get_by_text("This layer can't be seen: nothing that routes was found in it.")).to_be_visible()


def test_a_window_of_which_the_begin_is_forgotten_says_since_when_it_is(
    clock: Clock, watched: Watched
) -> None:
    with Serving(clock, history_mib=1) as serving:
        epoch = int(clock.now * 1e9)
        for seq in range(1, 10):
            clock.now += 10
            counts = {layer: [100_000 * seq] * 1024 for layer in range(64)}  # too much for a MiB
            serving.push(frame(counts, top_k=2, epoch=epoch, seq=seq, after_s=10.0 * seq))
        assert serving.get("/v1/view", start="-60s")["window"]["truncated"] is True
        page = watched.open(serving.url, "#/overview?window=1m")
        badge = page.locator("#short")
        expect(badge).to_be_visible()
        expect(badge).to_contain_text("nothing older is remembered")
        assert watched.axe() == []
        watched.route("#/overview?window=all")
        expect(badge).to_be_hidden()
        page.goto("about:blank")
