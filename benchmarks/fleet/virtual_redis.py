"""A client of a real Redis in which a virtual clock tells the time, and lets keys expire.

Scripts read the time from two keys. What the server would delete by its own clock is noted in a sorted set
instead, in the same step as the command that says so, and deleted when the virtual clock comes there.
"""

from collections.abc import Callable
from typing import Any

from redis import ConnectionPool, Redis
from redis.client import Pipeline
from redis.commands.core import Script

from benchmarks.fleet.virtual_time import Clock, Fiber

_SECONDS, _MICROSECONDS, _EXPIRIES = "simulated:seconds", "simulated:microseconds", "simulated:expiries"
_REAL_TIME = "redis.call('TIME')"
_VIRTUAL_TIME = f"redis.call('MGET', '{_SECONDS}', '{_MICROSECONDS}')"

_MOVE = f"""
redis.call('MSET', '{_SECONDS}', ARGV[1], '{_MICROSECONDS}', ARGV[2])
local due = redis.call('ZRANGEBYSCORE', '{_EXPIRIES}', '-inf', ARGV[3], 'LIMIT', 0, 1000)
for _, key in ipairs(due) do
  redis.call('DEL', key)
  redis.call('ZREM', '{_EXPIRIES}', key)
end
"""


class Waiters:
    """Fibers that wait for a list to have something in it (BLMOVE)."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._fibers: dict[Fiber, str] = {}

    def wait(self, fiber: Fiber, key: str, seconds: float) -> None:
        """Let this fiber wait."""
        self._fibers[fiber] = key
        try:
            fiber.wait(seconds)
        finally:
            self._fibers.pop(fiber, None)

    def look(self, now: float) -> None:
        """Wake those that need not wait any more."""
        for key in set(self._fibers.values()):
            if self._redis.llen(key):
                for fiber in [fiber for fiber, waits_for in self._fibers.items() if waits_for == key]:
                    if fiber.owner is None or fiber.owner.asleep_until <= now:
                        fiber.wake()


class VirtualRedis(Redis):
    """What one process sees. Once the process is dead, every call raises KilledError."""

    def __init__(
        self, pool: ConnectionPool, clock: Clock, waiters: Waiters | None = None, process: Fiber | None = None
    ) -> None:
        super().__init__(connection_pool=pool)
        self._clock = clock
        self._waiters = waiters
        self._process = process

    def time(self, **_: Any) -> Any:
        """The virtual clock's."""
        return split(self._clock.now)

    def register_script(self, script: Any) -> Script:
        """With the virtual clock's time in it."""
        return super().register_script(script.replace(_REAL_TIME, _VIRTUAL_TIME))

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """With expiry by the virtual clock."""
        self.check()
        first, *rest = translate(self._clock, args)
        answer = super().execute_command(*first, **options)  # type: ignore[no-untyped-call]
        for command in rest:
            super().execute_command(*command)  # type: ignore[no-untyped-call]
        return answer

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Pipeline:
        """One with the same clock."""
        return _VirtualPipeline(self, self._clock, transaction, shard_hint)

    def blmove(self, first_list: Any, second_list: Any, timeout: Any, src: Any = "", dest: Any = "") -> Any:
        """Wait on the virtual clock."""
        assert self._waiters
        assert self._clock.fiber
        if not self.llen(first_list):
            self._waiters.wait(self._clock.fiber, first_list, timeout)
        return self.lmove(first_list, second_list, src, dest)

    def check(self) -> None:
        """Raise KilledError if the process is dead; else let Redis know the time."""
        if self._process:
            self._process.check()
        self._clock.settle()


class _VirtualPipeline(Pipeline):
    def __init__(self, redis: VirtualRedis, clock: Clock, transaction: bool, shard_hint: Any) -> None:
        super().__init__(redis.connection_pool, redis.response_callbacks, transaction, shard_hint)
        self._clock = clock
        self._check = redis.check

    def execute_command(self, *args: Any, **options: Any) -> Any:
        answer = None
        for command in translate(self._clock, args):
            answer = super().execute_command(*command, **options)  # type: ignore[no-untyped-call]
        return answer

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        self._check()
        return super().execute(raise_on_error)


def translate(clock: Clock, args: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """Return what is sent in place of a command."""
    name = args[0]
    if name == "EXPIRE":
        return [("ZADD", _EXPIRIES, clock.now + args[2], args[1])]
    if name == "PERSIST":
        return [("ZREM", _EXPIRIES, args[1])]
    if name == "SET" and "EX" in args:
        place = args.index("EX")
        plain = (*args[:place], *args[place + 2 :])
        return [plain, ("ZADD", _EXPIRIES, clock.now + args[place + 1], args[1])]
    return [args]


def split(now: float) -> tuple[int, int]:
    """Return seconds and microseconds, as Redis tells the time."""
    seconds = int(now)
    return seconds, int((now - seconds) * 1e6)


def follow(redis: Redis) -> Callable[[float], None]:
    """Return what tells Redis each new time."""
    move = Redis.register_script(redis, _MOVE)

    def moved(now: float) -> None:
        move(args=[*split(now), now])

    return moved
