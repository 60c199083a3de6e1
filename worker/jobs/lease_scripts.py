"""Takes a job, or gives one back, in one step: all that Redis is told of it happens, or nothing does.

RQ writes several times between taking a job and running it. A worker that died in between left a job that
was neither waiting nor running. Here RQ's own writes are collected in a pipeline that is never executed, and
a script runs them all if, and only if, the job is still where it should be.
"""

from typing import Any

from redis import Redis
from redis.client import Pipeline
from rq.queue import Queue

from shared.jobs.mending import say_reset

# Commands come as: how many arguments, then these. An error in one of them does not keep the rest from being
# done, as in a transaction; it is told at the end. A key of a wrong type is reset, as in shared.jobs.mending.
# Returns 1, and the keys that were reset.
_RUN_COMMANDS = """
local failure
local answer = {1}
local place = 3
while place <= #ARGV do
  local count = tonumber(ARGV[place])
  local reply = redis.pcall(unpack(ARGV, place + 1, place + count))
  if type(reply) == 'table' and reply.err and string.find(reply.err, 'WRONGTYPE', 1, true) then
    redis.call('DEL', ARGV[place + 2])
    answer[#answer + 1] = ARGV[place + 2]
    reply = redis.pcall(unpack(ARGV, place + 1, place + count))
  end
  if type(reply) == 'table' and reply.err then
    failure = failure or reply
  end
  place = place + count + 1
end
return failure or answer
"""

# KEYS: the queue's list, and the leases. ARGV: the job's id, and its new lease. Sent again, because the
# answer was lost with the connection, it says yes again.
_TAKE = f"""
if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 0 then
  return redis.call('ZSCORE', KEYS[2], ARGV[2]) and 1 or 0
end
{_RUN_COMMANDS}
"""

# KEYS: the leases. ARGV: the lease, and the time until which it must have ended; empty: ended or not.
_END_LEASE = f"""
local ends = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not ends or (ARGV[2] ~= '' and tonumber(ends) > tonumber(ARGV[2])) then
  return 0
end
redis.call('ZREM', KEYS[1], ARGV[1])
{_RUN_COMMANDS}
"""


def take_job(redis: Redis, queue: Queue, job_id: str, lease: str, then: Pipeline) -> bool:
    """Remove a job from its queue and run the commands collected in `then`, which write its lease.

    Returns False, with nothing done, when the job does not wait in the queue any more.

    Raises:
        ResponseError: one of the commands failed; the others are done.
    """
    keys = [queue.key, queue.started_job_registry.key]
    return _answer(redis.register_script(_TAKE)(keys=keys, args=[job_id, lease, *_flat(then)]))


def end_lease(redis: Redis, leases_key: str, lease: bytes, ended_by: float | None, then: Pipeline) -> bool:
    """Remove a lease that ended by `ended_by` (seconds since 1970) and run the commands collected in `then`.

    With `ended_by` None, also one that still holds. Returns False, with nothing done, when the lease was
    renewed or removed meanwhile.

    Raises:
        ResponseError: one of the commands failed; the others are done.
    """
    limit = "" if ended_by is None else repr(ended_by)
    return _answer(redis.register_script(_END_LEASE)(keys=[leases_key], args=[lease, limit, *_flat(then)]))


def _answer(reply: int | list[Any]) -> bool:
    """Return whether it was done, and say which keys were reset."""
    if isinstance(reply, int):
        return bool(reply)
    for key in reply[1:]:
        say_reset(key.decode("utf-8", "replace"))
    return True


def _flat(pipeline: Pipeline) -> list[bytes | str | int | float]:
    flat: list[bytes | str | int | float] = []
    for arguments, _ in pipeline.command_stack:
        flat += [len(arguments), *arguments]
    return flat
