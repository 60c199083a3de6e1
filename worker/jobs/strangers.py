"""Jobs that a worker of RQ's own took by mistake (`rq worker`). It can do none of them; they come back."""

import logging
from typing import cast

from shared.jobs.task_queue import TaskQueue, given_up_key

logger = logging.getLogger("bitfleet.worker")

# KEYS: the queue's list, RQ's list of jobs on their way to a worker, the failed jobs, and those of them that
# we gave up. Returns how many came back.
_RETURN = """
local back = 0
for _, id in ipairs(redis.call('LRANGE', KEYS[2], 0, -1)) do
  redis.call('LPUSH', KEYS[1], id)
  back = back + 1
end
redis.call('DEL', KEYS[2])
local ours = {}
for _, id in ipairs(redis.call('ZRANGE', KEYS[4], 0, -1)) do
  if redis.call('ZSCORE', KEYS[3], id) then
    ours[id] = true
  else
    redis.call('ZREM', KEYS[4], id)
  end
end
for _, id in ipairs(redis.call('ZRANGE', KEYS[3], 0, -1)) do
  if not ours[id] then
    redis.call('ZREM', KEYS[3], id)
    -- One that is done by now, or runs, is left alone.
    local job = 'rq:job:' .. id
    local fields = redis.pcall('HGETALL', job)
    for place = 1, #fields, 2 do
      if fields[place] == 'status' and fields[place + 1] == 'failed' then
        redis.call('HSET', job, 'status', 'queued')
        redis.call('PERSIST', job)
        redis.call('LPUSH', KEYS[1], id)
        back = back + 1
      end
    end
  end
end
return back
"""


def return_strangers_jobs(queue: TaskQueue) -> None:
    """Put back what failed without our doing, and what RQ's own workers took and did not begin."""
    failed, given_up = queue.failed_job_registry.key, given_up_key(queue.name)
    with queue.connection.pipeline(transaction=True) as pipeline:
        pipeline.llen(queue.intermediate_queue_key)
        pipeline.zcard(failed)
        pipeline.zcard(given_up)
        taken, failures, ours = cast(list[int], pipeline.execute())
    if not taken and failures == ours:
        return
    script = queue.connection.register_script(_RETURN)
    if back := script(keys=[queue.key, queue.intermediate_queue_key, failed, given_up]):
        logger.warning(
            "%d jobs are back that a worker of RQ's own took; it can't do them: `producer status` names it",
            back,
        )
