"""The core works in an install without extras: only what the package itself requires can be imported."""

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

SOURCE = Path(__file__).parents[1] / "src"
EXTRA_MODULES = {  # extra -> modules that need it as soon as they are imported; the core imports them inside functions
    "clip": ("encoders.open_clip", "encoders.open_clip_weights"),
    "online": ("online",),
    "serve": ("search.service",),
}
IMPORT_ALL = """
import importlib, pkgutil, sys
sys.path[:0] = sys.argv[1:3]
import mim_lightning
for module in pkgutil.walk_packages(mim_lightning.__path__, "mim_lightning."):
    try:
        importlib.import_module(module.name)
    except Exception as error:
        print(module.name, repr(error), sep=": ")
"""


def core_distributions() -> dict[str, str]:
    """Return canonical name -> folder of what an install without extras has."""
    found: dict[str, str] = {}
    waiting = [Requirement("mim-lightning")]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in found and not requirement.extras:
            continue
        try:
            installed = distribution(requirement.name)
        except PackageNotFoundError:  # one of several ways to meet it, or overridden in pyproject.toml
            continue
        found[name] = str(installed.locate_file(""))
        for text in installed.requires or []:
            inner = Requirement(text)
            extras = requirement.extras or {""}
            if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(inner)
    return found


def test_the_core_imports_without_extras(tmp_path: Path) -> None:
    for name in core_distributions():
        if name == "mim-lightning":
            continue
        record = distribution(name).read_text("RECORD") or ""
        for top in {line.split(",")[0].split("/")[0] for line in record.splitlines()} - {"..", "__pycache__"}:
            target = Path(str(distribution(name).locate_file(top)))
            if target.exists() and not (tmp_path / top).exists():
                (tmp_path / top).symlink_to(target)
    command = [sys.executable, "-I", "-S", "-c", IMPORT_ALL, str(SOURCE), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    failed = re.findall(r"^mim_lightning\.([\w.]+): (.*)$", result.stdout, re.MULTILINE)
    prefixes = tuple(f"{module}." for modules in EXTRA_MODULES.values() for module in modules)
    assert failed, "without extras, modules of extras cannot be imported"
    assert not [(module, error) for module, error in failed if not f"{module}.".startswith(prefixes)]
