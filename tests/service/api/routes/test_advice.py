"""/v1/advice over a real connection: shapes that OpenAPI tells, problems that say what to do."""

from __future__ import annotations

import pytest

from tests.service.api.schema_check import check
from tests.service.conftest import Service
from tests.service.traffic import push_fleet


def test_advice_on_a_skewed_fleet(service: Service) -> None:
    push_fleet(service, rounds=21, skew=0.8)
    answer = service.get("/v1/advice")
    assert (answer["ranks"], answer["num_experts"], answer["layers"]) == (4, 32, [3, 4, 5])
    assert answer["verdict"]["decision"] == "worth_it"
    assert answer["verdict"]["strategy"] == "eplb"
    chosen = next(
        item
        for item in answer["options"]
        if (item["strategy"], item["redundant"]) == ("eplb", answer["verdict"]["redundant"])
    )
    base, after = answer["base"]["held_out"]["ratio_of_sums"], chosen["held_out"]["ratio_of_sums"]
    assert chosen["saving_held_out"] == pytest.approx(1 - after / base)
    assert f"{chosen['saving_held_out']:.1%}" in answer["verdict"]["words"]
    assert chosen["held_out"]["worst"] == pytest.approx(max(chosen["held_out_by_layer"]))
    assert answer["fit"]["used_end"] == answer["held_out"]["used_start"]
    assert answer["fit_tokens"] + answer["held_out_tokens"] == service.get("/v1/histogram")["tokens"]
    # The base is what /v1/balance says of the same window.
    instants = {"start": answer["held_out"]["used_start"]["latest"]}
    balance = service.get("/v1/balance", **instants)["summary"]["over_ep_ranks"]
    assert answer["base"]["held_out"] == pytest.approx(balance)


def test_short_data_are_too_early_to_say(service: Service) -> None:
    push_fleet(service, skew=0.8)
    answer = service.get("/v1/advice")
    verdict = answer["verdict"]
    assert (answer["enough"], answer["seconds"], verdict["decision"]) == (False, 300.0, "too_early")
    assert answer["short"].startswith("Too early to say: this rests on data of 300 s only, where 3,600 s")
    assert verdict["words"].startswith("So far, EPLB ")
    assert "orth it" not in verdict["words"]


def test_the_openapi_document_is_true(service: Service) -> None:
    push_fleet(service, skew=0.8, uncovered=(4,))
    document = service.get("/openapi.json")
    for path in ("/v1/advice", "/v1/advice/placement"):
        response = service.client.get(path)
        assert response.status_code == 200, response.text
        check(document, path, response)
        assert set(document["paths"][path]["get"]["responses"]) == {
            "200",
            "400",
            "401",
            "403",
            "404",
            "408",
            "422",
            "503",
        }


def test_idle_is_no_sample(service: Service) -> None:
    push_fleet(service, rounds=2)
    service.clock.now += 7200
    answer = service.get("/v1/advice")
    assert answer["verdict"]["decision"] == "no_sample"
    assert (answer["options"], answer["base"], answer["drift"]) == ([], None, None)


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/v1/advice?redundant=3", 400, "redundant=0 or 4"),
        ("/v1/advice?redundant=-4", 400, "0 to 8192"),
        ("/v1/advice?nodes=3", 400, "nodes"),
        ("/v1/advice?groups=5", 400, "n_group"),
        ("/v1/advice?ranks=5000", 422, "4096"),
        ("/v1/advice?fit_share=1", 422, "0.95"),
        ("/v1/advice?start=yesterday", 400, "-5m"),
        ("/v1/advice?server=other", 404, "server=simulated"),
    ],
)
def test_problems_say_what_to_do(service: Service, path: str, status: int, words: str) -> None:
    push_fleet(service, rounds=2)
    response = service.client.get(path)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert words in response.json()["detail"]
