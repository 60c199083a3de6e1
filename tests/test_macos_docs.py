"""The property list of docs/macos.md, as far as a machine that is no Mac can judge it."""

import plistlib
import re
from pathlib import Path

import click

import worker.cli

DOCS = Path(__file__).parent.parent / "docs" / "macos.md"


def test_the_property_list_is_one_and_starts_a_worker() -> None:
    (block,) = re.findall(r"```xml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    agent = plistlib.loads(block.encode())
    program, *arguments = agent["ProgramArguments"]
    assert program.endswith("/bin/worker")
    command = worker.cli.main.commands[arguments[0]]
    assert command.make_context("start", arguments[1:]).params["hedge"]
    url = next(option for option in command.params if option.name == "redis_url")
    assert isinstance(url, click.Option)
    assert url.envvar in agent["EnvironmentVariables"]
    assert agent["KeepAlive"] == {"SuccessfulExit": False}
    assert f"LaunchAgents/{agent['Label']}.plist" in DOCS.read_text()
