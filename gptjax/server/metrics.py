"""Prometheus metrics of a server, in a registry of their own: /metrics.

https://prometheus.io/docs/practices/naming: base units, and `_total` for what only grows.
"""

from collections.abc import Iterator

import prometheus_client
from prometheus_client import Counter, Histogram, core, registry

from gptjax.server.generation import Generator

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST
SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0),
)  # upper bounds of the histograms' buckets


class Metrics:
    """Counts of requests, times of tokens, and the state of a generator at the moment."""

    def __init__(self, generator: Generator):
        self._registry = registry.CollectorRegistry()
        self._registry.register(_GeneratorStats(generator))
        self.requests = Counter(
            "gptjax_requests",
            "Requests that were answered, by route and HTTP status.",
            ("route", "status"),
            registry=self._registry,
        )
        self.request_seconds = Histogram(
            "gptjax_request_seconds",
            "Time from a request to the end of its answer.",
            ("route",),
            buckets=SECONDS,
            registry=self._registry,
        )
        self.first_token_seconds = Histogram(
            "gptjax_time_to_first_token_seconds",
            "Time from a request to the first token of each of its choices.",
            buckets=SECONDS,
            registry=self._registry,
        )
        self.between_tokens_seconds = Histogram(
            "gptjax_time_between_tokens_seconds",
            "Time from each token of a choice to the next.",
            buckets=SECONDS,
            registry=self._registry,
        )

    def render(self) -> bytes:
        """All of them in Prometheus' text format."""
        return prometheus_client.generate_latest(self._registry)


class _GeneratorStats(registry.Collector):
    def __init__(self, generator: Generator):
        self._generator = generator

    def collect(self) -> Iterator[core.Metric]:
        stats = self._generator.stats()
        gauges = {
            "slots": ("Generations that can run at once.", stats.slots),
            "active_slots": ("Generations that run.", stats.active),
            "queue_depth": ("Generations that wait for a slot.", stats.queued),
        }
        counters = {
            "prompt_tokens": ("Tokens of prompts.", stats.prompt_tokens),
            "cached_prompt_tokens": (
                "Tokens of prompts that were not read again.",
                stats.cached_tokens,
            ),
            "generated_tokens": ("Tokens that were generated.", stats.new_tokens),
        }
        for name, (text, value) in gauges.items():
            yield core.GaugeMetricFamily(f"gptjax_{name}", text, value)
        for name, (text, value) in counters.items():
            yield core.CounterMetricFamily(f"gptjax_{name}", text, value)
