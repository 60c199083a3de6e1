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

# Leases end by Redis' clock, whatever the clocks of the machines say.
_NOW = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
"""

# Commands come as: how many arguments, then these. An error in one of them does not keep the rest from being
# done, as in a transaction; it is told at the end. A key of a wrong type is reset, as in shared.jobs.mending.
# What follows them returns `failure or answer`: 1, and the keys that were reset.
_RUN_COMMANDS = """
local failure
local answer = {1}
local place = 4
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
"""

# KEYS: the queue's list, and the leases. ARGV: the job's id, its new lease, and the seconds of that. Sent
# again, because the answer was lost with the connection, it says yes again.
_TAKE = f"""
if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 0 then
  return redis.call('ZSCORE', KEYS[2], ARGV[2]) and 1 or 0
end
{_NOW}
{_RUN_COMMANDS}
-- RQ's commands wrote an end by the worker's own clock.
redis.call('ZADD', KEYS[2], now + tonumber(ARGV[3]), ARGV[2])
return failure or answer
"""

# KEYS: the leases. ARGV: the lease, its seconds, and nothing.
_RENEW = f"""
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then
  return 0
end
{_NOW}
{_RUN_COMMANDS}
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]), ARGV[1])
return failure or answer
"""

# KEYS: the leases. ARGV: the lease, whether it must be over, and nothing.
_END_LEASE = f"""
local ends = redis.call('ZSCORE', KEYS[1], ARGV[1])
{_NOW}
if not ends or (ARGV[2] == 'over' and tonumber(ends) > now) then
  return 0
end
redis.call('ZREM', KEYS[1], ARGV[1])
{_RUN_COMMANDS}
return failure or answer
"""


def take_job(redis: Redis, queue: Queue, job_id: str, lease: str, seconds: int, then: Pipeline) -> bool:
    """Remove a job from its queue, lease it, and run the commands collected in `then`.

    Returns False, with nothing done, when the job does not wait in the queue any more.

    Raises:
        ResponseError: one of the commands failed; the others are done.
    """
    keys = [queue.key, queue.started_job_registry.key]
    return _answer(redis.register_script(_TAKE)(keys=keys, args=[job_id, lease, seconds, *_flat(then)]))


def renew_lease(redis: Redis, leases_key: str, lease: str, seconds: int, then: Pipeline) -> bool:
    """Let a lease end so many seconds from now, and run the commands collected in `then`.

    Returns False, with nothing done, when the lease is gone.

    Raises:
        ResponseError: one of the commands failed; the others are done.
    """
    return _answer(redis.register_script(_RENEW)(keys=[leases_key], args=[lease, seconds, "", *_flat(then)]))


def end_lease(redis: Redis, leases_key: str, lease: bytes | str, then: Pipeline, *, over: bool) -> bool:
    """Remove a lease and run the commands collected in `then`.

    With `over`, only a lease that ran out. Returns False, with nothing done, when the lease was renewed or
    removed meanwhile.

    Raises:
        ResponseError: one of the commands failed; the others are done.
    """
    args = [lease, "over" if over else "", "", *_flat(then)]
    return _answer(redis.register_script(_END_LEASE)(keys=[leases_key], args=args))


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
