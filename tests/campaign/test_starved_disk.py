"""A disk that is full at any write of any command: one line, nothing half-written, and with room again the same end.

writes.txt lists every kind of file that each command opens for writing, and how often. To write it again:

    python -m tests.campaign.test_starved_disk
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests import preloaded
from tests.campaign.bench import COMMANDS, Bench, contents, differences, error_line, leftovers
from tests.campaign.outcomes import cases, record_outcome
from tests.campaign.starved import Plan, make_room, small_disk

WRITES = Path(__file__).with_name("writes.txt")
LISTED = [command for command in COMMANDS if command != "remote"]  # which needs a store, and writes as "train" does
ELSEWHERE = ("tmp/", "home/", "shop/")  # folders of temporary files and of other programs
FILLED_BY_LIBRARIES = ("evaluation/", "exported/", "onnx/", ".scratch-rows-#/")  # folders: their files are not noted
WENT_ON = "went on without"
# one of each command is in the default suite too
SHORT = {
    "prepare": "prepared/.manifest.partial/.scratch-#/shard.tar",
    "train": "runs/#tower-shop-seed#-#/checkpoints/last.ckpt",
    "build_index": "index/main_index-#.faiss",
}


class Write(NamedTuple):
    command: str
    kind: str
    count: int


def read_writes() -> list[Write]:
    lines = [line.split("\t") for line in WRITES.read_text().splitlines()]
    return [Write(command, kind, int(count)) for command, kind, count in lines]


def tried() -> dict[str, list[str]]:
    """Return, by command, the kinds of files that no earlier command opens, in the order of their opening."""
    found: dict[str, list[str]] = {command: [] for command in COMMANDS}
    known: set[str] = set()
    for write in read_writes():
        name = "/".join(write.kind.rstrip("/").split("/")[-2:])
        is_file = not write.kind.endswith("/") or write.kind.endswith(FILLED_BY_LIBRARIES)
        if is_file and name not in known:
            found[write.command].append(write.kind)
            known.add(name)
    return found


def disk_cases() -> list[tuple[str, tuple[str, list[str]]]]:
    """Return commands with the kinds of files at which the disk is full, one after the other."""
    short = [(f"{command} at {kind.split('/')[-1]}", (command, [kind])) for command, kind in SHORT.items()]
    return short + [(command, (command, kinds)) for command, kinds in tried().items() if kinds]


@pytest.mark.parametrize("case", cases(disk_cases(), [name for name, _ in disk_cases()[: len(SHORT)]]))
def test_a_full_disk_is_one_line_and_the_same_command_finishes(bench: Bench, case: tuple[str, list[str]]) -> None:
    command, kinds = case
    expected = bench.expected(command)
    bench.reset(command)
    wrong = []
    for kind in kinds:
        try:
            with record_outcome("starved", command, f"disk full at {kind}") as found:
                found.outcome = fail_at(bench, command, kind, expected)
                if found.outcome == WENT_ON:  # all is there: the next kind is not opened again
                    bench.reset(command)
        except AssertionError as error:  # the other kinds too
            wrong.append(str(error))
    with record_outcome("starved", command, "room on the disk again") as found:
        again = bench.run(command)
        assert again.returncode == 0, again.stderr[-500:]
        assert contents(bench.folder) == expected, differences(contents(bench.folder), expected)
        assert not leftovers(bench.folder)
        found.outcome = "finishes, bit-equal"
    assert not wrong, "\n".join(wrong)


def fail_at(bench: Bench, command: str, kind: str, expected: dict[str, Any]) -> str:
    """Run a command whose disk is full from a kind of file on; return what became of it."""
    ended = bench.run(command, plan=Plan(disk=bench.filled_at(kind)))
    is_full = make_room(bench.folder)
    if not is_full and ended.returncode == 0:  # it went on from where it had failed before, behind this kind of file
        assert contents(bench.folder) == expected, differences(contents(bench.folder), expected)
        bench.reset(command)
        ended = bench.run(command, plan=Plan(disk=bench.filled_at(kind)))
        is_full = make_room(bench.folder)
    assert is_full or not bench.is_mounted, "no such file was opened"
    assert not leftovers(bench.folder)
    if ended.returncode == 0:
        assert contents(bench.folder) == expected, differences(contents(bench.folder), expected)
        return WENT_ON
    line = error_line(ended)
    assert "No space left on device" in line or "disk is full" in line, line
    assert f"{bench.folder}/" in line, f"names no file: {line}"
    contents(bench.folder)  # raises where a file is half-written
    return "one line, nothing half-written"


@pytest.mark.campaign
@pytest.mark.parametrize("command", LISTED)
def test_every_kind_of_write_has_a_case(bench: Bench, command: str) -> None:
    bench.expected(command)
    opened = {kind for kind in bench.kinds[command] if not kind.startswith(ELSEWHERE)}
    listed = {write.kind for write in read_writes() if write.command == command}
    assert opened == listed, "python -m tests.campaign.test_starved_disk lists them anew"


def main() -> None:
    preloaded.start()
    with tempfile.TemporaryDirectory() as folder, small_disk(Path(folder) / "disk") as is_mounted:
        bench = Bench(Path(folder) / "disk", Path(folder) / "states", is_mounted)
        for command in LISTED:
            bench.expected(command)
        lines = [
            f"{command}\t{kind}\t{count}\n"
            for command in LISTED
            for kind, count in bench.kinds[command].items()
            if not kind.startswith(ELSEWHERE)
        ]
    WRITES.write_text("".join(lines))


if __name__ == "__main__":
    main()
