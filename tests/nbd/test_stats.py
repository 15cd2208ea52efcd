"""Counters, rates, histogram, quantiles."""

from __future__ import annotations

import json

import pytest

from blockvault.nbd import stats
from blockvault.nbd.stats import Counters, Meter, quantile


@pytest.mark.parametrize(
    ("seconds", "bound"),
    [(0.0, "1"), (0.0000009, "1"), (0.000001, "2"), (0.000064, "128"),
     (0.1, "131072"), (1e9, "2147483648")],
)  # fmt: skip
def test_a_time_falls_below_the_bound_of_its_bucket(seconds: float, bound: str) -> None:
    counters = Counters()
    counters.took(stats.WRITE, 3, seconds)
    assert counters.as_dict()["latency_us"] == {"write": {bound: 3}}


def test_a_meter_sums_open_and_closed_connections() -> None:
    meter = Meter()
    first, second = meter.connect(), meter.connect()
    first.bytes_read, second.bytes_read, second.errors = 5, 7, 1
    first.took(stats.READ, 2, 0.001)
    second.took(stats.READ, 3, 0.001)
    meter.disconnect(first)
    total = meter.total()
    assert (total.bytes_read, total.errors, total.requests[stats.READ]) == (12, 1, 5)
    assert (meter.connections, meter.connections_ever) == (1, 2)
    assert json.loads(json.dumps(total.as_dict()))["latency_us"] == {"read": {"1024": 5}}


def test_rates_are_those_of_the_last_ten_seconds() -> None:
    meter = Meter()
    counters = meter.connect()
    assert set(meter.rates().values()) == {0.0}
    for second in range(100):
        counters.took(stats.WRITE, 1000 if second > 80 else 1, 0.0)
        counters.bytes_written += 4096
        meter.tick(float(second))
    assert meter.rates() == {
        "reads": 0.0, "writes": 1000.0, "bytes_read": 0.0, "bytes_written": 4096.0,
    }  # fmt: skip


def test_quantiles() -> None:
    histogram = [(2, 50), (4, 49), (1024, 1)]
    assert [quantile(histogram, share) for share in (0.0, 0.5, 0.51, 0.99, 1.0)] == [
        2,
        2,
        4,
        4,
        1024,
    ]
    assert quantile([], 0.99) == 0
