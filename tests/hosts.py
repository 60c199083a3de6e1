"""Worker hosts on one machine: network namespaces, each with a cable of its own to Redis, that can be cut."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Host:
    """A network namespace, joined to ours by a pair of virtual interfaces."""

    name: str
    network: str
    """First three numbers of its addresses."""

    @property
    def redis_address(self) -> str:
        return f"{self.network}.1"

    @property
    def prefix(self) -> tuple[str, ...]:
        """Before a command line, runs it there."""
        return ("ip", "netns", "exec", self.name)

    def cut_off(self) -> None:
        _ip("link", "set", self.name, "down")

    def reconnect(self) -> None:
        _ip("link", "set", self.name, "up")


def _new_host(number: int) -> Host:
    # Other tests may run on this machine at the same time; an interface's name has at most 15 letters.
    return Host(f"bf{os.getpid()}-{number}", f"10.213.{(2 * os.getpid() + number) % 254 + 1}")


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Skips the test, with the reason, where the machine doesn't allow them."""
    if shutil.which("ip") is None:
        pytest.skip("no `ip` command (package iproute2)")
    with ExitStack() as stack:
        yield stack.enter_context(_host(_new_host(0))), stack.enter_context(_host(_new_host(1)))


@contextmanager
def _host(host: Host) -> Iterator[Host]:
    added = subprocess.run(["ip", "netns", "add", host.name], capture_output=True, text=True, check=False)
    if added.returncode:
        pytest.skip(f"no network namespaces here: {added.stderr.strip()}")
    try:
        inside = f"{host.name}i"
        try:
            _ip("link", "add", host.name, "type", "veth", "peer", "name", inside)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no virtual interfaces here: {error.stderr.strip()}")
        _ip("link", "set", inside, "netns", host.name)
        _ip("addr", "add", f"{host.network}.1/24", "dev", host.name)
        _ip("link", "set", host.name, "up")
        _ip("-n", host.name, "addr", "add", f"{host.network}.2/24", "dev", inside)
        _ip("-n", host.name, "link", "set", inside, "up")
        yield host
    finally:
        # Its interfaces go with it.
        _ip("netns", "del", host.name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True)
