"""Metrics of this machine's workers at a port. Each question is answered from what they say in Redis."""

import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from shared.errors import BitfleetError, InputError
from shared.jobs.connection import connect
from shared.jobs.running import running_jobs
from shared.jobs.task_queue import TaskQueue
from shared.jobs.workers import live_workers

if TYPE_CHECKING:
    from prometheus_client.core import Metric


class Machine:
    """A collector for prometheus-client: the workers of one `worker start`."""

    def __init__(self, redis_url: str, queue_name: str, start_id: str) -> None:
        self._redis_url = redis_url
        self._queue_name = queue_name
        self._start_id = start_id

    def collect(self) -> "Iterator[Metric]":
        """Yield all metrics; without a Redis only that it is away."""
        from prometheus_client.core import GaugeMetricFamily

        from shared.jobs.worker_metrics import worker_metrics

        answers = GaugeMetricFamily("bitfleet_redis_up", "Whether Redis answers this machine.")
        try:
            with connect(self._redis_url, patient=False) as connection:
                queue = TaskQueue(self._queue_name, connection)
                ours = [worker for worker in live_workers(queue) if worker.start_id == self._start_id]
                found = [*worker_metrics(ours, running_jobs(queue))]
        except (RedisError, BitfleetError, OSError):
            found = []
        answers.add_metric([], float(bool(found)))
        yield answers
        yield from found


def serve_metrics(redis_url: str, queue_name: str, start_id: str, *, bind: str, port: int) -> None:
    """Answer Prometheus at `bind` and `port` from now on, in a thread of this process.

    Raises:
        InputError: prometheus-client is not installed, or the port is taken.
    """
    if importlib.util.find_spec("prometheus_client") is None:
        raise InputError(
            "--metrics-port needs prometheus-client; in bitfleet's folder: pip install '.[metrics]'"
        )
    from prometheus_client import CollectorRegistry, start_http_server

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Machine(redis_url, queue_name, start_id))
    try:
        start_http_server(port, bind, registry)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"--metrics-port {port} on {bind}: {reason}; give another port or address") from None
