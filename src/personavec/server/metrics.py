"""What Prometheus may ask of a server."""

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from personavec.server.catalogue import Catalogue
from personavec.server.engine import Engine

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)
SHARES = tuple(share / 10 for share in range(-10, 11))


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self, engine: Engine, catalogue: Catalogue) -> None:
        self._norms = {name: vector.card.activation_norms for name, vector in catalogue.vectors.items()}
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("personavec_requests", "Requests by outcome", ["path", "status"], registry=registry)
        self.total = 0
        self.first_token = Histogram(
            "personavec_first_token_seconds", "Seconds to the first token", buckets=SECONDS, registry=registry
        )
        self.latency = Histogram(
            "personavec_request_seconds", "Seconds of a whole request", buckets=SECONDS, registry=registry
        )
        self.tokens = Counter("personavec_tokens", "Tokens read and written", ["kind"], registry=registry)
        self.alerts = Counter("personavec_alerts", "Alerts raised", ["vector", "kind"], registry=registry)
        self.projections = Histogram(
            "personavec_projection",
            "Projections of a reply's mean, as a share of the usual activation norm at its layer",
            ["vector"],
            buckets=SHARES,
            registry=registry,
        )
        running = Gauge("personavec_running", "Replies that are being written", registry=registry)
        running.set_function(lambda: engine.running)
        queued = Gauge("personavec_queued", "Replies that wait", registry=registry)
        queued.set_function(lambda: engine.queued)

    def request(self, path: str, status: int) -> None:
        """Count a request that was answered."""
        self.total += 1
        self.requests.labels(path, status).inc()

    def reply(self, projections: Mapping[str, Mapping[str, Any]], alerts: list[dict[str, Any]]) -> None:
        """Count what was read at a reply."""
        for name, read in projections.items():
            norms = self._norms.get(name)
            if norms and read["response_avg"] is not None:
                self.projections.labels(name).observe(read["response_avg"] / norms[read["layer"]])
        for alert in alerts:
            self.alerts.labels(alert["vector"], alert["kind"]).inc()

    def text(self) -> bytes:
        """All of them, in Prometheus' text format."""
        return generate_latest(self.registry)
