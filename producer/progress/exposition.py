"""A status as Prometheus metrics. Needs prometheus-client, which `.[metrics]` brings."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from producer.jobs.who import Present
from producer.progress.status import RunStatus
from shared.jobs.worker_metrics import worker_metrics

STATES = ("wanted", "queued", "running", "finished", "collected", "failed", "cancelled")


def expose(status: RunStatus, present: Present | None) -> str:
    """Return a status, and what workers say of themselves, in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Status(status, present))
    return generate_latest(registry).decode()


class _Status:
    """A collector for prometheus-client."""

    def __init__(self, status: RunStatus, present: Present | None) -> None:
        self._status = status
        self._present = present

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics."""
        yield from _parts(self._status)
        if self._present is not None:
            yield from worker_metrics(self._present.workers, [*self._present.jobs.values()])
        status = self._status
        used, limit = (status.store.used_bytes, status.store.limit_bytes) if status.store else (None, None)
        for name, text, value in (
            ("bitfleet_queue_age_seconds", "Wait of the first job in the queue.", status.queue_age_seconds),
            ("bitfleet_seconds_left", "Until all that is enqueued is done.", status.seconds_left),
            ("bitfleet_relay_bytes", "Bytes that wait in the relay.", used),
            ("bitfleet_relay_limit_bytes", "Bytes that may wait there.", limit),
            ("bitfleet_redis_up", "Whether a Redis was asked.", float(status.redis)),
        ):
            if value is not None:
                yield GaugeMetricFamily(name, text, value=value)


def _parts(status: RunStatus) -> Iterator[Metric]:
    names = ["run", "part", "kind"]
    tasks = GaugeMetricFamily("bitfleet_tasks", "Tasks by state.", labels=[*names, "state"])
    seconds = GaugeMetricFamily(
        "bitfleet_seconds_per_task", "Mean seconds of the latest tasks.", labels=[*names, "host"]
    )
    for part in status.parts:
        labels = [status.run, part.title, part.kind]
        for state in STATES:
            tasks.add_metric([*labels, state], getattr(part, state))
        for host, each in part.seconds_by_host.items():
            seconds.add_metric([*labels, host], each)
    yield from (tasks, seconds)
