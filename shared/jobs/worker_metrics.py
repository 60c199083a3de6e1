"""What workers do, as Prometheus metrics. Needs prometheus-client, which `.[metrics]` brings."""

from collections import Counter
from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from shared.jobs.running import RunningJob
from shared.jobs.workers import WorkerInfo


def worker_metrics(workers: Sequence[WorkerInfo], running: Sequence[RunningJob]) -> Iterator[Metric]:
    """Yield the metrics of these workers, from what each says of itself.

    Counters begin anew with each process: the label `worker` names the process.
    """
    states = GaugeMetricFamily("bitfleet_workers", "Connected workers.", labels=["host", "state"])
    for (host, state), number in Counter((worker.host, worker.state) for worker in workers).items():
        states.add_metric([host, state], number)
    who = ["host", "worker"]
    done = CounterMetricFamily("bitfleet_tasks_done", "Finished tasks.", labels=[*who, "kind"])
    seconds = CounterMetricFamily(
        "bitfleet_task_seconds", "Seconds that finished tasks took.", labels=[*who, "kind"]
    )
    failed = CounterMetricFamily("bitfleet_attempts_failed", "Attempts that ended in an error.", labels=who)
    lost = CounterMetricFamily(
        "bitfleet_leases_lost", "Results dropped because the lease was lost.", labels=who
    )
    silent = GaugeMetricFamily(
        "bitfleet_worker_silent_seconds", "Seconds since a worker's last sign of life.", labels=who
    )
    lease = GaugeMetricFamily(
        "bitfleet_lease_left_seconds", "Seconds until the lease of a running job ends.", labels=["worker"]
    )
    for worker in workers:
        names = [worker.host, worker.name]
        for kind, each in worker.tally.done.items():
            done.add_metric([*names, kind], each.tasks)
            seconds.add_metric([*names, kind], each.seconds)
        failed.add_metric(names, worker.tally.failed)
        lost.add_metric(names, worker.tally.leases_lost)
        silent.add_metric(names, round(worker.seconds_silent, 3))
    known = {worker.name for worker in workers}
    for name, left in {job.worker: job.lease_seconds for job in running if job.worker in known}.items():
        lease.add_metric([name], round(left, 3))
    yield from (states, done, seconds, failed, lost, silent, lease)
