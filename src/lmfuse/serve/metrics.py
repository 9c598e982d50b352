"""What the server counts, in Prometheus's text format: each application has a registry of its own."""

from __future__ import annotations

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from lmfuse.serve.desk import Desk, House

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Meters:
    """All figures of one server. Labels are names of models, routes and statuses: few, whatever clients send."""

    def __init__(self, house: House) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "lmfuse_requests",
            "Answered requests; route gate: no key or the wrong host or origin, other: no such route.",
            ["route", "status"],
            registry=self.registry,
        )
        self.endings = Counter(
            "lmfuse_texts",
            "Texts by how they ended: stop, length, time, gone (the client), refused_prompt, busy (no place, or in line for too long), "
            "closing (the server), error.",
            ["model", "ending"],
            registry=self.registry,
        )
        self.passages = Counter("lmfuse_passages", "Passages sent, by their author.", ["model", "author"], registry=self.registry)
        self.text_bytes = Counter("lmfuse_text_bytes", "Bytes of text sent, by their author.", ["model", "author"], registry=self.registry)
        self.first = Histogram(
            "lmfuse_first_passage_seconds",
            "From a request's arrival to its first passage.",
            ["model"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.whole = Histogram(
            "lmfuse_text_seconds", "From a request's arrival to the end of its text.", ["model"], buckets=SECONDS, registry=self.registry
        )
        for name, help_text, look in (
            ("lmfuse_waiting_requests", "Requests in line.", _waiting),
            ("lmfuse_writing_requests", "Texts being written.", _writing),
        ):
            gauge = Gauge(name, help_text, ["model"], registry=self.registry)
            for model, desk in house.desks.items():
                gauge.labels(model).set_function(partial(look, desk))

    def text(self) -> bytes:
        """Return all figures."""
        return generate_latest(self.registry)


def _waiting(desk: Desk) -> float:
    return float(desk.waiting)


def _writing(desk: Desk) -> float:
    return float(desk.writing)
