"""Network faults in short: four senders, a real service, and a network that fails between them."""

from __future__ import annotations

from pathlib import Path

from devkit.soak import network


def test_no_fault_of_the_network_loses_or_doubles_counts_and_drops_are_what_failed(tmp_path: Path) -> None:
    with network.network(tmp_path, senders=4, unharmed=1, interval=0.1, timeout=4.0, first_wait=0.5) as made:
        network.undergo(made, network.disorder(0.6))
        network.undergo(made, network.resets(0.8, share=0.4))
        cut_off = network.undergo(made, network.partition(0.8))
        network.check_counts(made)
    assert {"accepted", "duplicate", "stale"} <= set(made.relay.results)
    assert made.proxy.injuries["reset"] > 0
    assert made.proxy.injuries["silent"] >= 4
    assert cut_off.failed >= 4
    assert len(cut_off.returns) == 4
    assert not any(worker.failures() or worker.sent_again for worker in made.unharmed)


def test_a_crowd_is_the_most_within_a_time() -> None:
    assert network.crowd([0.0, 0.1, 0.2, 5.0, 5.1]) == 3
    assert network.crowd([0.0, 0.3, 0.6]) == 1
