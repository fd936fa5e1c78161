"""Files, keys, names and commands in the documentation exist."""

import importlib
import importlib.util
import re
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))
import make_site  # noqa: E402
from code_blocks import commands_of, find_faults, read_blocks  # noqa: E402

CONF = ROOT / "conf"
KEY = re.compile(r"`[+~]*([a-z_]+(?:\.[a-z_]+)+)(?:=[^`]*)?`")
TABLE_HEAD = re.compile(r"key of `([a-z_.]+)`|`([a-z_.]+)\.`")
TABLE_KEY = re.compile(r"`([a-z_.]+)`")
# whose keys are names that the user chooses, or options of a library
OPEN_SECTIONS = (
    "data.mixture.",
    "data.vectors.",
    "data.source.columns.",
    "data.source.fields",
    "optim.lr_scales.",
    "model.",
    "trainer.",
)
# packages, files and a key that may be added
ARE_NO_KEYS = ("data.images", "run.py", "index.json", "weights.npy", "fields.py", "data.shards.seed")
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


def keys_of_conf() -> set[str]:
    """Return every key of conf/, and every section."""
    keys: set[str] = set()

    def walk(part: object, prefix: str) -> None:
        for name, inner in part.items() if isinstance(part, dict) else ():
            keys.add(f"{prefix}{name}")
            walk(inner, f"{prefix}{name}.")

    for path in CONF.rglob("*.yaml"):
        group = path.relative_to(CONF).parent.as_posix()
        is_global = group == "." or "@package _global_" in path.read_text()
        group = "data.source.download" if group == "data/download" else group.replace("/", ".")
        walk(yaml.safe_load(path.read_text()), "" if is_global else f"{group}.")
    return keys


def unknown_keys(page: Path, known: set[str]) -> list[str]:
    """Return the keys in the text of a page, and in tables whose head names their section, that conf/ does not have."""
    sections = {key.split(".")[0] for key in known}
    found, section = [], None
    for line in make_site.FENCE.sub("", page.read_text()).splitlines():
        names = [name for name in KEY.findall(line) if name.split(".")[0] in sections and name not in ARE_NO_KEYS]
        cell = line.split("|")[1].strip() if line.startswith("|") else ""
        section = section if cell else None
        if section is not None:
            names += [section + name for name in TABLE_KEY.findall(cell)]
        elif head := TABLE_HEAD.fullmatch(cell):
            name = head[1] or head[2]
            section = "" if (CONF / f"{name}.yaml").exists() else f"{name}."
        found += [name for name in names if name not in known and not name.startswith(OPEN_SECTIONS)]
    return found


def test_every_key_in_the_text_exists(tmp_path: Path) -> None:
    known = keys_of_conf()
    pages = [path for pattern in make_site.CODE for path in sorted(ROOT.glob(pattern))]
    assert {page.name: found for page in pages if (found := unknown_keys(page, known))} == {}
    page = tmp_path / "page.md"
    page.write_text("`data.fold=x` `seed.y`\n\n| `data.cache.` | |\n| --- | --- |\n| `retries`, `sizes` | 3 |\n")
    assert unknown_keys(page, known) == ["data.fold", "seed.y", "data.cache.sizes"]


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
