"""Keys that conf/ does not list are accepted as people write them, and so is every key that a message advises."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from lightning import Trainer

from mim_lightning.config import Config, compose
from mim_lightning.overrides import OPEN_SECTIONS, TRAINER_OPTIONS, open_up

SOURCE = Path(__file__).parents[1] / "src" / "mim_lightning"
CONF = Path(__file__).parents[1] / "conf"
DOCS = Path(__file__).parents[1] / "docs"
# what is composed to find a key: by entry point, what its config needs to have all of them
COMPOSED = {
    "train": [
        *("data=manifest", "data.source.products=p", "data.source.queries=q", "data/sampling=grouped"),
        *("encoder/image=resnet50", "encoder/text=minilm", "schedule=wsd", "callbacks=ema"),
    ],
    "prepare": ["data=grocery"],
    "evaluate": ["checkpoint=c"],
    "build_index": ["checkpoint=c", "output=o"],
}
KEY = re.compile(
    r"(?<![\w./<-])((?:data|optim|trainer|callbacks|loss|model|encoder|schedule|index|ray|run)\.[\w.]+)(\S)?"
)


def advised_keys() -> Iterator[str]:
    """Yield the keys of config that texts in the source name whole."""
    for path in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
        in_pieces = {
            id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)
        } - {id(node) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                text = "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in statements:
                text = "" if id(node) in in_pieces else node.value
            else:
                continue
            # the rest of a key that ends in a placeholder is known only at run time
            yield from (key.rstrip(".") for key, after in KEY.findall(text) if after not in ("{", "(") and " " in text)


def documented_keys() -> Iterator[str]:
    """Yield the keys of config that the pages of docs/ name in text, without placeholders."""
    for page in sorted(DOCS.glob("*.md")):
        text = "" if page.stem == "architecture" else page.read_text()  # names packages alike
        for code in re.findall(r"`([^`+\n][^`\n]*)`", re.sub(r"[a-z]+\.(json|py|safetensors|checkpoint)\b", "", text)):
            yield from (key.rstrip(".") for key, after in KEY.findall(code) if after not in ("{", "(", "<", "*"))


def has(config: Config, key: str) -> bool:
    section, _, rest = key.partition(".")
    return section in config and (not rest or (isinstance(config[section], dict) and has(config[section], rest)))


def test_every_key_that_a_message_names_is_accepted() -> None:
    keys = set(advised_keys())
    assert {"optim.lr_scales.encoder", "data.validation.on_invalid", "index.hnsw_m"} <= keys and len(keys) > 40
    keys |= set(documented_keys())
    configs = [compose(name, overrides) for name, overrides in COMPOSED.items()]
    configs += [
        compose("train", [words])
        for words in ("trainer=fsdp", "data/sampling=hard_negatives", "encoder/text=embeddinggemma")
    ]
    tables = (f"data.source.{name}=t" for name in ("impressions", "products", "queries"))
    configs.append(compose("prepare", ["data=clicks", *tables]))
    configs.append(compose("train", ["experiment=small_catalog", "data.source.products=t", "data.source.queries=t"]))
    for path in sorted(CONF.glob("*.yaml")):
        shown = yaml.safe_load(path.read_text()).get("hydra", {}).get("help", {})
        used_most = [line.split("=")[0] for line in shown.get("footer", "").splitlines()]
        assert len(used_most) <= 10 and shown.get("header", "").count("\n") < 12, path
        if path.stem in COMPOSED:
            keys |= set(used_most)
    unlisted = {key for key in keys if not any(has(config, key) for config in configs)}
    assert not [key for key in sorted(unlisted) if open_up([f"{key}=1"]) != [f"++{key}=1"]]


@pytest.mark.parametrize(
    "override",
    [
        "optim.lr_scales.encoder=0.1",
        "+optim.lr_scales.encoder=0.1",
        "trainer.fast_dev_run=true",
        "+trainer.max_epochs=3",
        "data.source.columns.queries.kind=sort",
        "data.mixture.web.id_namespace=separate",
    ],
)
def test_an_open_key_is_set_with_and_without_a_plus(override: str) -> None:
    key = override.lstrip("+").partition("=")[0]
    assert has(compose("train", [*COMPOSED["train"], override]), key)


def test_other_overrides_stay_as_they_are() -> None:
    words = ["trainer.device=8", "trainer=cpu", "~optim.lr_scales.encoder", "data.folder=a=b", "--help", "+x.y=1"]
    assert open_up(words) == words


def test_the_trainers_options_are_lightnings() -> None:
    assert set(inspect.signature(Trainer.__init__).parameters) - {"self"} == TRAINER_OPTIONS
    assert all(section.endswith(".") for section in OPEN_SECTIONS)
