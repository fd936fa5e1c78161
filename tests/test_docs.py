"""Files, keys and names in the documentation exist."""

import importlib
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "mim_lightning"
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()


def test_every_file_that_the_architecture_names_exists() -> None:
    paths = re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.(?:py|md|yaml)|(?:tests|docs|conf)/[a-z_/.]+)`", ARCHITECTURE)
    assert len(paths) > 40
    assert [path for path in paths if not (ROOT / path).exists() and not (SOURCE / path).exists()] == []


def test_every_type_in_the_pipeline_diagram_exists() -> None:
    pytest.importorskip("matplotlib", reason="draws with the extra 'figures'")
    spec = importlib.util.spec_from_file_location("make_pipeline", ROOT / "docs" / "make_pipeline.py")
    assert spec is not None and spec.loader is not None
    pipeline = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pipeline)
    types = [found for *_, handed, _ in pipeline.ARROWS if (found := pipeline.type_of(handed))]
    assert len(types) > 8
    for module, name in types:
        assert hasattr(importlib.import_module(module), name), f"{module}.{name}"
        assert f"`{name}`" in ARCHITECTURE
