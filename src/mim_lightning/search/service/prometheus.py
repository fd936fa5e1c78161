"""The service's counters, in the text format that Prometheus scrapes."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class ServiceMetrics:
    """Counters of one service; no label holds text that a client wrote.

    Args:
        routes: first parts of the paths that are counted apart; all others count as "page".
    """

    def __init__(self, routes: Iterable[str]) -> None:
        self.registry = registry = CollectorRegistry()
        self._routes = frozenset(routes)
        count, gauge = partial(Counter, registry=registry), partial(Gauge, registry=registry)
        histogram = partial(Histogram, registry=registry, buckets=SECONDS)
        self.requests = count("mim_requests", "Responses by route and status", ("route", "status"))
        self.seconds = histogram("mim_request_seconds", "Time to respond, by route", ("route",))
        self.encode = histogram("mim_encode_seconds", "Time to encode a query, waiting included")
        self.index = histogram("mim_index_seconds", "Time in the index", ("arm",))
        self.batches = histogram("mim_batch_size", "Inputs encoded together", ("kind",), buckets=SIZES)
        self.products = gauge("mim_index_products", "Products in the index", ("arm",))
        self.impressions = count("mim_impressions", "Impressions recorded, by arm", ("arm",))
        self.clicks = count("mim_clicks", "Clicks recorded")
        self.lost_impressions = count("mim_impressions_lost", "Impressions that could not be recorded", ("arm",))
        self.lost_clicks = count("mim_clicks_lost", "Clicks that could not be recorded")
        self.event_log_up = gauge("mim_event_log_up", "1: the experiment's event log records; 0: it fails")

    def observe_request(self, method: str, path: str, status: int, seconds: float) -> None:
        first = path.removeprefix("/").split("/")[0]
        route = first if first in self._routes else "page"
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def observe_batch(self, kind: str, size: int) -> None:
        self.batches.labels(kind).observe(size)

    def expose(self) -> bytes:
        return generate_latest(self.registry)
