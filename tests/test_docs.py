"""Files, keys, names and commands in the documentation exist."""

import importlib
import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))
import make_site  # noqa: E402
from code_blocks import commands_of, find_faults, read_blocks  # noqa: E402

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


FIRST = ("README.md", "CONTRIBUTING.md", "docs/install.md", "docs/quickstart.md")


@pytest.mark.parametrize(
    ("patterns", "num_commands"), [(FIRST, 30), pytest.param(make_site.CODE, 90, marks=pytest.mark.slow)]
)
def test_code_blocks_and_commands_are_accepted(patterns: tuple[str, ...], num_commands: int) -> None:
    """`make docs` checks all pages, too."""
    pages = [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]
    blocks = [block for page in pages for block in read_blocks(page) if block.language == "sh"]
    assert sum(len(commands_of(block.text)) for block in blocks) >= num_commands
    assert find_faults(pages) == []


FAULTS = {
    "sh\nmim train data.batchsize=8": "no config key 'data.batchsize'",
    "sh\n# needs an account\nmim export checkpoint=c output=o push_to=x": "no config key 'push_to'",
    "sh\nmim search index=shop &&\\\n  mim serve index=shop prot=1": "no config key 'prot'",
    "sh\nmim train -m model=2tower,33tower": "no option '33tower'",
    "sh\npython -m mim_lightning.trian": "there is no command trian",
    "sh\nmim search index=shop\nmim search image=photo.jpg": "index: needs a value",
    "sh\nmim prepare data.source.products=p.csv": "no config key 'data.source.products'",
    "sh\nmim prepare data=manifest ...\nmim prepare data=manifest": "data.source.products: needs a value",
    "sh\nmim compare runs/a runs/b --into x": "unrecognized arguments: --into x",
    "sh\npip install 'mim-lightning[clipp]'": "there is no extra clipp",
    "sh\nmake trian": "the Makefile has no target trian",
    "sh\nmin train": "no command of this project",
    "sh\necho 'open": "unexpected EOF",
    "python\nimport mim_lightning.searching": "there is no mim_lightning.searching",
    "python\nfrom mim_lightning.model.matcher import Macher": "there is no mim_lightning.model.matcher.Macher",
    "python\nmim_lightning.open_search('index')": "there is no mim_lightning.open_search",
    "python\nmim_lightning.train(f'init_from={path}', 'models=4tower')": "models",
    "python\nx = (1": "line 1: '(' was never closed",
    "\nwhat is this": "a block without a language",
}


def test_what_is_wrong_with_a_block_is_said(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    for block, fault in FAULTS.items():
        page.write_text(f"Text.\n\n```{block}\n```\n")
        found = find_faults([page])
        assert len(found) == 1 and found[0].startswith(f"{page}:3: ") and fault in found[0], (block, found)
    page.write_text("Run `mim train`, or\n`mim search\nindx=shop`, or `mim <command>`, or `mim trian`.\n")
    assert [found.split(": ")[0] for found in find_faults([page])] == [f"{page}:2", f"{page}:3"]
