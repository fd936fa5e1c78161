"""Container files, workflow and hooks of commits name targets, files, keys and versions that there are."""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from mim_lightning.cli import compose_arguments

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TARGETS = {*re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE)}
PLACES = {"dist/*.whl": "wheel"}  # what no commit holds, by the target that makes it


@pytest.mark.parametrize("name", ["Containerfile", "Containerfile.train"])
def test_a_container_is_made_of_what_there_is(name: str) -> None:
    path = ROOT / "docs" / "deployment" / name
    first, *_ = text = path.read_text().splitlines()
    made, built = (part.split() for part in first.removeprefix("# ").split(" && "))
    assert made[0] == "make" and {*made[1:]} <= TARGETS
    assert built[:2] == ["docker", "build"] and ROOT / built[built.index("-f") + 1] == path
    lines = re.sub(r"\\\n", " ", "\n".join(line for line in text if not line.startswith("#"))).splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line.strip()]
    known = {"FROM", "RUN", "COPY", "USER", "WORKDIR", "VOLUME", "ENV", "EXPOSE", "ENTRYPOINT", "CMD", "STOPSIGNAL"}
    words = [word for word, _ in steps]
    assert {*words} <= known | {"HEALTHCHECK"} and words[0] == "FROM"
    assert words.index("USER") < words.index("ENTRYPOINT") and ["USER", "mim"] in steps

    (version,) = re.findall(r"^python:(3\.\d+)-slim$", steps[0][1])
    assert is_tested(version)
    for sources in (shlex.split(arguments)[:-1] for step, arguments in steps if step == "COPY"):
        for source in sources:
            assert PLACES.get(source) in made[1:] or [*ROOT.glob(source)], source
    runs = [arguments for step, arguments in steps if step == "RUN"]
    (install,) = [arguments for arguments in runs if "pip install" in arguments]
    assert "--no-cache-dir" in install
    (extras,) = re.findall(r"whl\)\[([\w,-]+)\]", install)
    assert {*extras.split(",")} <= {*PROJECT["optional-dependencies"]}
    for arguments in runs:
        assert subprocess.run(["/bin/sh", "-n", "-c", arguments]).returncode == 0, arguments

    entry, given = (json.loads(arguments) for step, arguments in steps if step in ("ENTRYPOINT", "CMD"))
    module = entry[entry.index("-m") + 1]
    assert importlib.util.find_spec(module) is not None
    if module != "mim_lightning":
        compose_arguments(module.rpartition(".")[2], [*entry[entry.index("-m") + 2 :], *given])


def is_tested(version: str) -> bool:
    """Is a version of Python one between the oldest and the newest that the workflow tests?"""
    oldest, newest = (int(one.split(".")[1]) for one in workflow()["versions"]["strategy"]["matrix"]["python"])
    return oldest <= int(version.split(".")[1]) <= newest


def workflow_text() -> str:
    return (ROOT / ".github" / "workflows" / "test.yml").read_text()


def workflow() -> dict[str, Any]:
    return dict(yaml.safe_load(workflow_text())["jobs"])


def test_the_workflow_runs_targets_and_tests_that_there_are_with_the_oldest_python() -> None:
    steps = [step["run"] for job in workflow().values() for step in job["steps"] if "run" in step]
    makes = [step.split()[1] for step in steps if step.startswith("make ")]
    assert {"test", "coverage"} <= {*makes} <= TARGETS
    for step in steps:
        places = [word for word in step.split() if word.startswith("tests/")]
        assert all((ROOT / place).is_dir() for place in places)
        for extras in re.findall(r"\.\[([\w,-]+)\]", step):
            assert {*extras.split(",")} <= {*PROJECT["optional-dependencies"]}
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert oldest in workflow()["versions"]["strategy"]["matrix"]["python"]
    alone = [step["with"]["python-version"] for name in ("test", "coverage") for step in workflow()[name]["steps"][1:2]]
    assert alone == [oldest, oldest]


def test_the_hooks_of_a_commit_run_what_the_lock_holds() -> None:
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    local = {hook["id"]: hook["entry"].split() for repo in repos if repo["repo"] == "local" for hook in repo["hooks"]}
    lock = (ROOT / "requirements.lock").read_text()
    assert {*local} == {"ruff-check", "ruff-format", "mypy"}
    for name, (python, dash, module, *options) in local.items():
        assert (python, dash) == (".venv/bin/python", "-m") and re.search(rf"^{module}==", lock, re.MULTILINE)
        # the files follow the options
        one = [*options, __file__] if module == "ruff" else ["--version"]
        ended = subprocess.run([sys.executable, "-m", module, *one], cwd=ROOT, capture_output=True, text=True)
        assert ended.returncode == 0, (name, ended.stdout, ended.stderr)
    others = {hook["id"] for repo in repos for hook in repo["hooks"]} - {*local}
    assert {"codespell", "check-added-large-files"} <= others
