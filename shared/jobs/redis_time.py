"""The time by Redis' clock. It is one for all machines, whatever their own clocks say."""

from redis import Redis


def redis_time(connection: Redis) -> float:
    """Return Redis' time, in seconds since 1970."""
    seconds, microseconds = connection.time()
    return seconds + microseconds / 1e6
