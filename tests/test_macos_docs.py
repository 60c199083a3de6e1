"""The property list of docs/macos.md, as far as a machine that is no Mac can judge it."""

import plistlib
import re
from pathlib import Path

import worker.cli

DOCS = Path(__file__).parent.parent / "docs" / "macos.md"


def test_the_property_list_is_one_and_starts_a_worker(tmp_path: Path) -> None:
    (block,) = re.findall(r"```xml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    daemon = plistlib.loads(block.encode())
    program, *arguments = daemon["ProgramArguments"]
    assert program.endswith("/bin/worker")
    command = worker.cli.main.commands[arguments[0]]
    # The file is that of the Mac; here one like it.
    place = arguments.index("--redis-url-file") + 1
    assert arguments[place] == "/Users/YOU/.config/bitfleet/redis-url"
    arguments[place] = str(tmp_path / "redis-url")
    (tmp_path / "redis-url").write_text("redis://:secret@studio.local\n")
    (tmp_path / "redis-url").chmod(0o600)
    parameters = command.make_context("start", arguments[1:]).params
    assert parameters["hedge"] is True
    assert parameters["redis_url"] == "redis://:secret@studio.local"
    assert "PASSWORD" not in block
    assert daemon["UserName"] == "YOU"
    assert daemon["KeepAlive"] == {"SuccessfulExit": False}
    assert f"LaunchDaemons/{daemon['Label']}.plist" in DOCS.read_text()
