"""Which of the waiting jobs a worker takes: the first that its machine can do and should do."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from redis import Redis
from rq.exceptions import DequeueTimeout

from shared.jobs.task_queue import TaskQueue, avoid_key, delayed_key, is_job_id

POLL_SECONDS = 1.0

# KEYS: the queue's list, and the delayed jobs. ARGV: the host, the beginning of the keys of avoided hosts,
# and beginnings of the ids of jobs that are set aside here. What is found stays where it is: see
# TaskQueue.lmove.
_CHOOSE = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000

local function is_aside(id)
  for place = 3, #ARGV do
    if string.sub(id, 1, string.len(ARGV[place])) == ARGV[place] then
      return true
    end
  end
  return false
end

local function is_better_elsewhere(id)
  local hosts = redis.pcall('GET', ARGV[2] .. id)
  return type(hosts) == 'string' and string.find('\\n' .. hosts .. '\\n', '\\n' .. ARGV[1] .. '\\n', 1, true)
end

local due = redis.pcall('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, 1000)
if due.err then
  redis.call('DEL', KEYS[2])
  due = {}
end
for place = #due, 1, -1 do
  redis.call('ZREM', KEYS[2], due[place])
  redis.call('LPUSH', KEYS[1], due[place])
end

local soon = false
local from = 0
while true do
  local ids = redis.call('LRANGE', KEYS[1], from, from + 999)
  if #ids == 0 then
    break
  end
  for _, id in ipairs(ids) do
    if not is_aside(id) then
      if not is_better_elsewhere(id) then
        return {id, false}
      end
      soon = 1
    end
  end
  from = from + 1000
end

local later = redis.call('ZRANGE', KEYS[2], 0, 99, 'WITHSCORES')
for place = 1, #later, 2 do
  if not is_aside(later[place]) then
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


def choose(connection: Redis, queue_name: str, queue_key: str, host: str, aside: list[str]) -> Choice:
    """Put delayed jobs that are due back into the queue, and find the first one for this host.

    Args:
        connection: to Redis.
        queue_name: of the queue.
        queue_key: of its list.
        host: this machine's name. Jobs that failed on it are left to others for a while.
        aside: beginnings of the ids of jobs that it can't do.
    """
    script = connection.register_script(_CHOOSE)
    found, seconds = script(keys=[queue_key, delayed_key(queue_name)], args=[host, avoid_key(""), *aside])
    return Choice(found, None if seconds is None else float(seconds))


def choosing_queue(host: str, aside: Callable[[], list[str]]) -> type[TaskQueue]:
    """Return a queue class for one machine; `aside` tells what it can't do now, as for `choose`."""

    class ChoosingQueue(TaskQueue):
        @classmethod
        def lmove(cls, connection: Redis, queue_key: str, timeout: float | None) -> Any:
            """Return the job to be done next, leaving it where it is.

            Without `timeout`, None when nothing waits that this machine could do, now or later.

            Raises:
                DequeueTimeout: there was none for a while; RQ calls again.
            """
            name = queue_key.removeprefix(cls.redis_queue_namespace_prefix)
            while True:
                choice = choose(connection, name, queue_key, host, aside())
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
