"""Which of the waiting jobs a worker takes: the first that its machine can do and should do."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from redis import Redis
from rq.exceptions import DequeueTimeout, StopRequested

from shared.jobs.asides import kind_of_job
from shared.jobs.orders import orders_key
from shared.jobs.task_queue import TaskQueue, avoid_key, delayed_key, is_job_id, runs_key
from shared.jobs.workers import Place

POLL_SECONDS = 1.0

WINDOW = 1000
"""So many jobs at the front of the queue are looked at for one of each run."""
TURN_SECONDS = 120.0
"""For so long a worker stays with one run while another one has as few workers: changing costs a model."""

# KEYS: the queue's list, the delayed jobs, the runs, the leases, each run's last turn, and the orders.
# ARGV: the host, the `worker start`, the beginning of the keys of avoided hosts, the size of the window, the
# run that this worker stays with or nothing, and the runs that are set aside here. What is found stays where
# it is: see TaskQueue.lmove.
_CHOOSE = r"""
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local window = tonumber(ARGV[4])
local aside = {}
for place = 6, #ARGV do
  aside[ARGV[place]] = true
end

local function run_of(id)
  return string.match(id, '^[^-]*%-[^-]*%-') or id
end

local function is_better_elsewhere(id)
  local hosts = redis.pcall('GET', ARGV[3] .. id)
  if type(hosts) ~= 'string' then
    return false
  end
  hosts = '\n' .. hosts .. '\n'
  local function names(text)
    return string.find(hosts, '\n' .. text .. '\n', 1, true)
  end
  return names(ARGV[1]) or names(ARGV[2])
end

if redis.call('HEXISTS', KEYS[6], 'drain:' .. ARGV[1]) == 1 then
  return {false, false, 'drained'}
end
if redis.call('HEXISTS', KEYS[6], 'pause') == 1 then
  return {false, redis.call('LLEN', KEYS[1]) + redis.call('ZCARD', KEYS[2]) > 0 and '1'}
end

-- Delayed jobs that are due come to the front.
local due = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, 1000)
for place = #due, 1, -1 do
  redis.call('ZREM', KEYS[2], due[place])
  redis.call('LPUSH', KEYS[1], due[place])
  redis.call('SADD', KEYS[3], run_of(due[place]))
end

-- One job of each run in turn, each run's own in their order.
local function deal(ids)
  local runs, jobs, longest = {}, {}, 0
  for _, id in ipairs(ids) do
    local run = run_of(id)
    if not jobs[run] then
      jobs[run] = {}
      runs[#runs + 1] = run
    end
    jobs[run][#jobs[run] + 1] = id
    longest = math.max(longest, #jobs[run])
  end
  redis.call('DEL', KEYS[1], KEYS[3])
  local dealt = {}
  local function write()
    if #dealt > 0 then
      redis.call('RPUSH', KEYS[1], unpack(dealt))
    end
    dealt = {}
  end
  for place = 1, longest do
    for _, run in ipairs(runs) do
      if jobs[run][place] then
        dealt[#dealt + 1] = jobs[run][place]
        if #dealt == 1000 then
          write()
        end
      end
    end
  end
  write()
  for _, run in ipairs(runs) do
    redis.call('SADD', KEYS[3], run)
  end
end

-- With several runs, each has a job in the window, or none at all.
local several = #redis.call('SMEMBERS', KEYS[3]) > 1
if several then
  local missing, count = {}, 0
  for _, run in ipairs(redis.call('SMEMBERS', KEYS[3])) do
    missing[run] = true
    count = count + 1
  end
  for _, id in ipairs(redis.call('LRANGE', KEYS[1], 0, window - 1)) do
    local run = run_of(id)
    if missing[run] then
      missing[run] = nil
      count = count - 1
      if count == 0 then
        break
      end
    end
  end
  if count > 0 then
    deal(redis.call('LRANGE', KEYS[1], 0, -1))
    several = #redis.call('SMEMBERS', KEYS[3]) > 1
  end
end

local first, runs, soon = {}, {}, false
local from, size = 0, several and window or 1
while true do
  local ids = redis.call('LRANGE', KEYS[1], from, from + size - 1)
  for _, id in ipairs(ids) do
    local run = run_of(id)
    if not aside[run] and not first[run] then
      if is_better_elsewhere(id) then
        soon = 1
      else
        first[run] = id
        runs[#runs + 1] = run
        if not several then
          break
        end
      end
    end
  end
  if #runs > 0 or #ids < size then
    break
  end
  from, size = from + size, window
end

if #runs == 1 then
  return {first[runs[1]], false}
end
if #runs > 1 then
  local busy, least = {}, math.huge
  for _, lease in ipairs(redis.call('ZRANGE', KEYS[4], 0, -1)) do
    local run = run_of(lease)
    busy[run] = (busy[run] or 0) + 1
  end
  for _, run in ipairs(runs) do
    least = math.min(least, busy[run] or 0)
  end
  local chosen, longest_ago
  for _, run in ipairs(runs) do
    if (busy[run] or 0) == least then
      local last = tonumber(redis.call('ZSCORE', KEYS[5], run) or '0')
      if run == ARGV[5] then
        last = -1
      end
      if not chosen or last < longest_ago then
        chosen, longest_ago = run, last
      end
    end
  end
  redis.call('ZREMRANGEBYSCORE', KEYS[5], '-inf', now - 86400)
  redis.call('ZADD', KEYS[5], now, chosen)
  return {first[chosen], false}
end

local later = redis.call('ZRANGE', KEYS[2], 0, 99, 'WITHSCORES')
for place = 1, #later, 2 do
  if not aside[run_of(later[place])] then
    local wait = tonumber(later[place + 1]) - now
    if not soon or wait < soon then
      soon = wait
    end
    break
  end
end
return {false, soon and tostring(soon)}
"""


@dataclass(frozen=True, slots=True)
class Choice:
    """A job, or how long it is until there may be one."""

    job_id: bytes | None
    seconds: float | None
    """None: no job that waits now is one for this machine."""
    drained: bool = False
    """Whether this machine is to take no job any more."""


class DrainedError(StopRequested):
    """This machine was drained: its workers leave."""


class Chooser:
    """Chooses for one worker process: of the run with the fewest workers, in turns where they are equal."""

    def __init__(self, place: Place, aside: Callable[[], list[str]]) -> None:
        """`aside` tells the runs (beginnings of jobs' ids) that this machine can't do now.

        Jobs that failed at `place` are left to others for a while.
        """
        self._place = place
        self._aside = aside
        self._run = ""
        self._since = 0.0

    def choose(self, connection: Redis, queue: str) -> Choice:
        """Put delayed jobs that are due back into the queue, and find one for this machine."""
        now = time.monotonic()
        stays_with = self._run if now - self._since < TURN_SECONDS else ""
        found, seconds, *drained = connection.register_script(_CHOOSE)(
            keys=[
                TaskQueue.redis_queue_namespace_prefix + queue,
                delayed_key(queue),
                runs_key(queue),
                f"rq:wip:{queue}",
                f"bitfleet:turns:{queue}",
                orders_key(queue),
            ],
            args=[*self._place, avoid_key(""), WINDOW, stays_with, *self._aside()],
        )
        if found is not None and (run := kind_of_job(found.decode("utf-8", "replace"))) != self._run:
            self._run, self._since = run, now
        return Choice(found, None if seconds is None else float(seconds), bool(drained))


def choosing_queue(place: Place, aside: Callable[[], list[str]]) -> type[TaskQueue]:
    """Return a queue class for one worker; the arguments are those of `Chooser`."""
    chooser = Chooser(place, aside)

    class ChoosingQueue(TaskQueue):
        @classmethod
        def lmove(cls, connection: Redis, queue_key: str, timeout: float | None) -> Any:
            """Return the job to be done next, leaving it where it is.

            Without `timeout`, None when nothing waits that this machine could do, now or later.

            Raises:
                DequeueTimeout: there was none for a while; RQ calls again.
                DrainedError: this machine was told to leave.
            """
            name = queue_key.removeprefix(cls.redis_queue_namespace_prefix)
            while True:
                choice = chooser.choose(connection, name)
                if choice.drained:
                    raise DrainedError
                if choice.job_id is not None:
                    if is_job_id(choice.job_id):
                        return queue_key, choice.job_id
                    connection.lrem(queue_key, 0, choice.job_id)  # type: ignore[arg-type]
                    continue
                if timeout is None and choice.seconds is None:
                    return None
                # To wait for no time would be to wait for ever.
                seconds = max(0.01, min(timeout or POLL_SECONDS, choice.seconds or POLL_SECONDS))
                if timeout is None or connection.llen(queue_key):
                    time.sleep(min(seconds, POLL_SECONDS))
                    raise DequeueTimeout(timeout, queue_key)
                # The first job that comes ends this.
                super().lmove(connection, queue_key, timeout if choice.seconds is None else seconds)

    return ChoosingQueue
