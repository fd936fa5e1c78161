"""Commands that lack something, or are disturbed by others: one line, nothing lost, and afterwards the same end."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.campaign.bench import DATA, Bench, contents, differences, error_line, finish, leftovers
from tests.campaign.outcomes import cases, record_outcome
from tests.campaign.starved import Plan, can_unshare

WORKERS = "data.num_workers=2"


@dataclass(frozen=True)
class Case:
    """A command and what disturbs it.

    Args:
        command: name in COMMANDS.
        lacks: what, in the words of the record.
        plan: what it lacks; {disk} is replaced.
        words: further arguments, of the disturbed start alone.
        always: further arguments of every start.
        line: pattern of the line that it ends with; "": it has to work; "?": it works, or says one line.
    """

    command: str
    lacks: str
    line: str = ""
    plan: dict[str, Any] = field(default_factory=dict)
    words: Sequence[str] = ()
    always: Sequence[str] = ()

    @property
    def name(self) -> str:
        return f"{self.command} {self.lacks}"


def read_only(command: str, folder: str, line: str = "") -> Case:
    lacks = f"read-only {folder}"
    line = line or f"{folder}.*(Read-only file system|cannot be written)"
    return Case(command, lacks, line, {"read_only": [folder]})


READ_ONLY = [
    *(read_only(command, "{disk}/prepared") for command in ("prepare", "validate", "add", "delete", "compact")),
    *(read_only(command, "{disk}/runs") for command in ("train", "sweep", "optuna")),
    read_only("frozen", "{disk}/features"),
    read_only("evaluate", "{disk}/evaluated"),
    *(read_only(command, "{disk}/index") for command in ("build_index", "index_delete", "index_update")),
    # it is replaced as a whole, but a mount cannot be renamed
    read_only("export", "{disk}/exported", "{disk}/exported.*resource busy"),
    read_only("search", "{disk}/pictures"),
    read_only("compare", "{disk}/compared"),
    read_only("plot", "{disk}/figures"),
    read_only("tune_fusion", "{disk}/tuned"),
]
READ = [  # what a command only reads may be read-only
    ("train", "{disk}/prepared"), ("evaluate", "{disk}/prepared"), ("evaluate", "{disk}/runs"),
    ("build_index", "{disk}/prepared"), ("build_index", "{disk}/runs"), ("export", "{disk}/runs"),
    ("search", "{disk}/index"), ("compare", "{disk}/runs"), ("plot", "{disk}/runs"), ("prepare", "{disk}/shop"),
]  # fmt: skip
READ_ONLY += [Case(command, f"reads a read-only {folder}", "", {"read_only": [folder]}) for command, folder in READ]
DESCRIPTORS = [
    Case(command, f"{number} descriptors", "?", {"limits": {"NOFILE": number}}, always=words)
    for command, words in {
        "prepare": (), "add": (), "train": (WORKERS,), "evaluate": (), "build_index": (), "export": (), "search": (),
    }.items()
    for number in (8, 16, 32)
]  # fmt: skip
SHARED = [
    Case(command, f"{kind} /dev/shm", "?", {"shared_memory": kind}, always=words)
    for command, words in {"train": (WORKERS,), "evaluate": (*DATA, WORKERS), "prepare": (), "search": ()}.items()
    for kind in ("missing", "tiny", "read-only")
]
CLOCK = [
    Case(command, "clock forty days back", "", {"clock": -40 * 86400.0})
    for command in (
        "prepare",
        "add",
        "train",
        "frozen",
        "sweep",
        "evaluate",
        "build_index",
        "index_delete",
        "export",
        "search",
    )
]
MEMORY = [
    Case(command, f"{size} MB of memory", "?", {"limits": {"AS": size << 20}})
    for command in ("prepare", "train", "evaluate", "build_index", "export", "search")
    for size in (50,)
]
CALLBACK = "callbacks.progress_bar={_target_: tests.campaign.callbacks."
RUNS = [
    Case(
        "train", "a data worker killed", "a data worker was killed by SIGKILL.*num_workers",
        words=[f"{CALLBACK}KillWorkerAt, step: 1}}"], always=["data.num_workers=1"],
    ),
    Case(
        "train", "a data worker out of shared memory", "a data worker was killed by SIGBUS: /dev/shm",
        words=[f"{CALLBACK}KillWorkerAt, step: 1, signum: 7}}"], always=["data.num_workers=1"],
    ),
    Case("train", "nothing but NaN", "training diverged", words=[f"{CALLBACK}NotANumberFrom, step: 0, count: 99}}"]),
]  # fmt: skip
CASES = [*READ_ONLY, *DESCRIPTORS, *SHARED, *CLOCK, *MEMORY, *RUNS]
SHORT = ("train a data worker killed",)


@pytest.mark.parametrize("case", cases([(case.name, case) for case in CASES], SHORT))
def test_what_is_missing_is_named_and_the_same_command_finishes(bench: Bench, case: Case) -> None:
    plan = Plan(**{key: _placed(value, bench.folder) for key, value in case.plan.items()})
    if (plan.read_only or plan.shared_memory) and not can_unshare():
        pytest.skip("this user may not have mounts of his own")
    words, always = _placed(case.words, bench.folder), _placed(case.always, bench.folder)
    expected = bench.expected(case.command, *always)
    bench.reset(case.command)
    for folder in plan.read_only:
        Path(folder).mkdir(parents=True, exist_ok=True)
    with record_outcome("starved", case.command, case.lacks.replace("{disk}/", "")) as found:
        ended = bench.run(case.command, *always, *words, plan=plan)
        if ended.returncode == 0:
            assert case.line in ("", "?"), "it works"
            found.outcome = "works, bit-equal"
            assert contents(bench.folder) == expected, differences(contents(bench.folder), expected)
        else:
            line = error_line(ended)
            assert case.line, line
            assert case.line == "?" or re.search(_placed(case.line, bench.folder), line), line
            found.outcome = "one line; bit-equal when run again"
        contents(bench.folder)  # raises where a file is half-written
        assert not leftovers(bench.folder)
        again = bench.run(case.command, *always)
        assert again.returncode == 0, again.stderr[-500:]
        assert contents(bench.folder) == expected, differences(contents(bench.folder), expected)


def _placed(value: Any, folder: Path) -> Any:
    if isinstance(value, str):
        return value.replace("{disk}", str(folder))
    return [_placed(part, folder) for part in value] if isinstance(value, list | tuple) else value


@pytest.mark.campaign
@pytest.mark.parametrize(
    "command", ["prepare", "add", "train", "sweep", "evaluate", "build_index", "index_delete", "export"]
)
def test_two_starts_end_as_one(bench: Bench, command: str) -> None:
    expected = bench.expected(command)
    bench.reset(command)
    with record_outcome("starved", command, "started twice at once") as found:
        both = finish(*(bench.start(command, plan=Plan()) for _ in range(2)))
        for done in both:
            assert done.returncode == 0 or error_line(done), done.stderr
        assert 0 in [done.returncode for done in both]
        assert contents(bench.folder) == expected, differences(contents(bench.folder), expected)
        assert not leftovers(bench.folder)
        codes = sorted(done.returncode for done in both)
        found.outcome = "both work, bit-equal" if codes == [0, 0] else "one works, the other says one line"


ALTERATIONS = {  # of a data set under a run: what the run says
    "cut": "damaged|shorter|bytes|truncated|changed",
    "remove": "no such|missing|changed|No such file",
    "flip": "?",
    "replace": "was prepared again|changed|not of the data",
}


@pytest.mark.campaign
@pytest.mark.parametrize("what", ALTERATIONS)
def test_data_altered_under_a_run_are_not_mixed(bench: Bench, what: str) -> None:
    """The run ends with one line, or as if nothing had been altered; put back, the same command ends as ever."""
    expected, other = bench.expected("train"), bench.states / "state-add" / "prepared" / "manifest"
    if what == "replace":
        bench.expected("add")
    bench.reset("train")
    prepared, kept = bench.folder / "prepared" / "manifest", bench.folder / "tmp" / "kept"
    shutil.copytree(prepared, kept)
    files = prepared if what == "replace" else prepared / "queries" / "train" / "*.tar"
    callback = f"{CALLBACK}AlterAt, step: 1, what: {what}, files: {files}, other: {other}}}"
    with record_outcome("starved", "train", f"data set altered at step 1: {what}") as found:
        ended = bench.run("train", callback, plan=Plan())
        shutil.rmtree(prepared)
        kept.rename(prepared)
        if ended.returncode:
            line = error_line(ended)
            assert ALTERATIONS[what] == "?" or re.search(ALTERATIONS[what], line), line
            found.outcome = "one line; bit-equal with the data put back"
        else:
            found.outcome = "works, bit-equal"
        again = bench.run("train", plan=Plan())
        assert again.returncode == 0, again.stderr[-500:]
        left = contents(bench.folder)
        if not ended.returncode:  # the callback is in the config and the command that this run has written
            for kind in [kind for kind in expected if kind.endswith(("/config.yaml", "/record.json", "/command.txt"))]:
                left[kind] = expected[kind]
        assert left == expected, differences(left, expected)


@pytest.mark.campaign
def test_a_batch_of_nan_is_skipped(bench: Bench) -> None:
    bench.reset("train")
    with record_outcome("starved", "train", "one batch of NaN") as found:
        ended = bench.run("train", f"{CALLBACK}NotANumberFrom, step: 1, count: 1}}", plan=Plan())
        assert ended.returncode == 0, ended.stderr[-500:]
        (path,) = bench.folder.glob("runs/*/checkpoints/last.ckpt")
        weights = torch.load(path, weights_only=True)["state_dict"]
        assert all(value.isfinite().all() for value in weights.values() if value.is_floating_point())
        found.outcome = "the step is skipped, the weights are finite"


@pytest.mark.campaign
def test_a_loss_that_diverges_is_one_line(bench: Bench) -> None:
    bench.reset("train")
    with record_outcome("starved", "train", "a loss that diverges") as found:
        ended = bench.run("train", "optim.lr=1e30", "trainer.max_epochs=3", plan=Plan())
        assert re.search("training diverged", error_line(ended))
        found.outcome = "one line"
