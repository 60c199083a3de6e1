"""Who copies a slow job, said in the job's own hash, so that idle machines spread over several slow jobs.

A claim is three words: until when it holds, when the copy will be done, and which worker makes it.
"""

from contextlib import suppress

from redis.exceptions import RedisError
from rq.job import Job

from shared.jobs.task_job import COPY_FIELD, TaskJob
from shared.jobs.task_queue import TaskQueue

CLAIM_SECONDS = 30.0
"""A claim is renewed about once a second while its copy runs, if no step of a slow machine takes longer."""

# KEYS: the job's hash. ARGV: the field, now, until when, when the copy will be done, and the worker. A claim
# that ran out counts for nothing, and whoever will be done sooner by a second may make another copy.
_CLAIM = """
local fields, claim = redis.call('HGETALL', KEYS[1]), ''
if #fields == 0 then
  return 0
end
for place = 1, #fields, 2 do
  if fields[place] == ARGV[1] then
    claim = fields[place + 1]
  end
end
local holds, done, worker = string.match(claim, '^(%S+) (%S+) (%S+)$')
holds, done = tonumber(holds or '') or 0, tonumber(done or '') or 0
if holds > tonumber(ARGV[2]) and done <= tonumber(ARGV[4]) + 1 and worker ~= ARGV[5] then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3] .. ' ' .. ARGV[4] .. ' ' .. ARGV[5])
return 1
"""


def claim_copy(queue: TaskQueue, job: Job, worker: str, *, now: float, done: float) -> bool:
    """Claim a job's copy, or renew the claim; False if another worker makes one that will be done as soon.

    Args:
        queue: of the job.
        job: the slow one.
        worker: name of the one that makes the copy.
        now: Redis' time.
        done: when the copy will be done, by Redis' time.
    """
    script = queue.connection.register_script(_CLAIM)
    times = [f"{time:.3f}" for time in (now, now + CLAIM_SECONDS, done)]
    return bool(script(keys=[job.key], args=[COPY_FIELD, *times, worker]))


def others_done(job: TaskJob, worker: str, now: float) -> float | None:
    """Return when another worker's copy of a job will be done; None if there is none. Times are Redis'."""
    try:
        holds, done, who = job.copy_claim.split()
        return float(done) if who != worker and float(holds) > now else None
    except ValueError:
        return None


def drop_claim(queue: TaskQueue, job: Job) -> None:
    """Let others copy the job; without Redis, the claim runs out."""
    with suppress(RedisError, OSError):
        queue.connection.hdel(job.key, COPY_FIELD)
