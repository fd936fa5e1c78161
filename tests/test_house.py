"""The house rules that a machine can read: who imports whom, which vendor lives where, how files begin."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "mim_lightning"
FILES = sorted(SOURCE.rglob("*.py"))

ROOMS = {  # room or file -> what of the project it may import
    "ids": set(),
    "types": {"ids"},
    "display": set(),
    "io": set(),
    "fields": set(),
    "targets": set(),
    "exports": set(),
    "stored_config": {"targets"},
    "interruption": set(),
    "data": {"types", "data", "ids"},
    "encoders": {"types", "encoders"},
    "losses": {"types", "losses"},
    "metrics": {"types", "metrics"},
    "metrics.directions": {"types", "metrics", "model.fusion"},
    "model": {"types", "encoders.interface", "model"},
    "model.checkpoint": {
        *("types", "encoders.interface", "model", "config", "stored_config"),
    },
    "analysis": {
        *("types", "data", "metrics", "model.fusion", "analysis"),
        "stored_config",
    },
    "lit": {
        *("types", "data", "model", "losses", "metrics", "analysis", "sweep.optuna_study", "lit"),
        *("interruption", "expected_types"),
    },
    "overrides": set(),
    "expected_types": set(),
    "set_name": set(),
    # what it builds and describes
    "config": {
        *("types", "model", "losses", "data.preparation.prepared"),
        *("overrides", "expected_types", "stored_config", "targets"),
    },
    "run": {"config", "expected_types", "model.checkpoint", "set_name", "targets"},
    "errors": {"config"},
    "cli": {"command", "config", "errors", "interruption", "overrides"},
    "launch": {"config", "cli", "errors", "interruption"},
    "sweep": {"config", "run", "errors", "sweep", "targets", "interruption"},
    "sweep.optuna_study": set(),
    "train": {
        *("config", "cli", "errors", "run", "launch", "training"),
        *("data.preparation.prepared", "analysis.html.validation_files", "lit.report"),
    },
    "training": {"config", "run", "launch", "lit", "model", "interruption", "expected_types"},
    "evaluate": {
        *("config", "cli", "expected_types", "launch", "run", "set_name", "lit", "model"),
        "stored_config",
    },
    "prepare": {"types", "config", "cli", "data", "analysis"},
    "command": {"interruption"},
    "tune_fusion": {"command", "analysis", "model", "types"},
    "wandb_workspace": {"command", "config"},
    "compare": {"command", "run", "analysis"},
    "inference": {
        *("types", "data.images", "encoders.interface", "model", "config", "metrics"),
        *("inference", "stored_config"),
        "metrics.directions",  # ranks by direction, as an evaluation does
    },
    "export": {"config", "cli", "expected_types", "inference", "lit", "model", "stored_config"},
    "online": {"online", "metrics"},
    "ab_report": {"config", "cli", "online"},
    "report": {"ab_report"},  # old names of commands
    "draw": {"plot"},
    "dashboard": {"wandb_workspace"},
    "plot": {"command", "config", "run", "analysis"},
    "search": {
        *("data.images", "data.shards.sample_finder", "data.shards.shard_set", "inference"),
        "search",
    },
    "search.index": {"search.index"},
    "search.service": {"data.images", "inference.image_inputs", "inference.query_product_fusion", "search"},
    "search.service.shopfront": {"data.images", "inference.image_inputs", "online.assignment", "search"},  # its type
    "search.service.recorder": {"online.assignment", "search"},  # likewise
    "search.__main__": {"data.images", "cli", "search"},
    "build_index": {
        *("config", "cli", "expected_types", "inference", "launch", "lit", "model", "search"),
        *("data.preparation.prepared", "analysis.html.validation_files"),
        "stored_config",
    },
    "serve": {"config", "cli", "interruption", "online", "search"},
}
ANYWHERE = {"io", "display", "fields", "exports"}  # know nothing of the project
DATA_ROOMS = {  # room or file of data -> what else of data it may import: rows above its own, so there are no circles
    "synthetic": set(),
    "images": set(),
    "manifest": {"images"},
    "sources": {"images", "manifest", "synthetic"},
    "splits": {"manifest"},
    "validation": {"images", "manifest"},
    "shards": set(),
    "preparation": {"images", "manifest", "splits", "validation", "shards"},
    "shards.mixture_set": {"shards"},
    "preparation.opened_data": {"shards", "preparation"},
    "sampling": {"shards"},
    "loading": {"images", "shards", "sampling"},
}
LARGEST_ROOM = 16  # files of a folder of data
VENDORS = {  # package -> rooms that may import it
    "aiohttp": {"io"},
    "fsspec": {"data", "io"},
    "lightning": {"lit", "training", "evaluate"},
    "hydra": {"config", "cli", "errors", "sweep"},
    "omegaconf": {"config", "cli", "errors", "sweep"},
    "timm": {"encoders"},
    "transformers": {"encoders"},
    "open_clip": {"encoders"},
    "faiss": {"metrics", "search"},
    "imagehash": {"data"},
    "torchmetrics": {"metrics"},
    "simplejpeg": {"data"},
    "pillow_heif": {"data"},
    "ray": {"data"},
    "pyarrow": {"data", "analysis", "search"},
    "jinja2": {"analysis"},
    "matplotlib": {"display", "analysis"},
    "sklearn": {"analysis"},
    "threadpoolctl": {"analysis"},
    "optuna": {"sweep", "lit"},
    "wandb": {"lit", "wandb_workspace"},  # see below; all else goes through conf/logger and Lightning's logger
    "wandb_workspaces": {"wandb_workspace"},
    "fastapi": {"search"},
    "starlette": {"search"},
    "gradio": {"search"},
    "prometheus_client": {"search"},
    "uvicorn": {"serve", "search"},
    "pymilvus": {"search"},
    "milvus_lite": {"search"},
    "huggingface_hub": {"inference", "data"},
    "datasets": {"data"},
    "onnx": {"inference"},
    "onnxruntime": {"inference"},
    "onnxscript": {"inference"},
    "sqlalchemy": {"online"},
    "statsmodels": {"online"},
}
FORBIDDEN_NAMES = {"utils", "misc", "common", "helpers", "manager"}


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found += [node.module or ""]
    return found


def name_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


DATA_FILES = [path for path in FILES if name_of(path).startswith("data.")]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    name = name_of(path)
    if not name:
        return
    allowed = ROOMS[max((room for room in ROOMS if f"{name}.".startswith(f"{room}.")), key=len)] | ANYWHERE
    for module in imports(path):
        if module.startswith("mim_lightning."):
            target = module.removeprefix("mim_lightning.")
            assert any(target == room or target.startswith(f"{room}.") for room in allowed), f"{name} imports {target}"


def test_rooms_of_data_stand_on_each_other() -> None:
    above: set[str] = set()
    for room, allowed in DATA_ROOMS.items():
        assert allowed <= above, f"data.{room} may not import what stands below it: {sorted(allowed - above)}"
        above.add(room)


@pytest.mark.parametrize("path", DATA_FILES, ids=name_of)
def test_imports_in_data_point_one_way(path: Path) -> None:
    name = name_of(path).removeprefix("data.")
    room = max((room for room in DATA_ROOMS if f"{name}.".startswith(f"{room}.")), key=len)
    for module in imports(path):
        if module.startswith("mim_lightning.data."):
            target = module.split(".")[2]
            assert target in DATA_ROOMS[room] | {room}, f"data.{name} imports data.{target}"


def test_rooms_of_data_are_read_in_one_sitting() -> None:
    sizes = Counter(name_of(path.parent) for path in DATA_FILES)
    assert max(sizes.values()) <= LARGEST_ROOM, sizes.most_common(3)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_vendor_has_its_room(path: Path) -> None:
    room = name_of(path).split(".")[0]
    for module in imports(path):
        vendor = module.split(".")[0]
        assert room in VENDORS.get(vendor, {room}), f"{vendor} does not belong into {room}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_say_what_they_are_for(path: Path) -> None:
    source = path.read_text()
    assert not FORBIDDEN_NAMES & set(path.relative_to(SOURCE).with_suffix("").parts)
    if source.strip():
        assert ast.get_docstring(ast.parse(source)), f"{path} has no docstring"


def test_collectives_stay_in_gather_and_metrics() -> None:
    users = {name_of(path) for path in FILES if any(m.startswith("torch.distributed") for m in imports(path))}
    assert users <= {"losses.gather", "metrics.collector"}


UNSAFE = {  # what would run code that stands in a file -> modules that may: nobody else's files reach them
    r"pickle\.loads?\(": {"data.preparation.ray_tasks"},  # rows that tasks of the same job packed
    r"weights_only=False": {"lit.trainer_options"},  # saves, in Lightning's words, the whole of a checkpoint
    r"allow_pickle=True|trust_remote_code=True|shell=True": set(),
    r"(?<![.\w])(?:eval|exec)\(|os\.(?:system|popen)\(|\b(?:marshal|shelve|dill|cloudpickle)\b|joblib\.load": set(),
    r"yaml\.(?:load|unsafe_load|full_load)\(": set(),
    r"torch\.load\((?![^\n]*weights_only=True)": set(),
    r"(?:Config|Model|Tokenizer)\.from_(?:pretrained|config)\((?!\s*[^)]*trust_remote_code=False)": set(),
    r"Markup\(": set(),
}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_is_read_that_could_run_code(path: Path) -> None:
    for pattern, users in UNSAFE.items():
        if name_of(path) not in users:
            assert not re.search(pattern, path.read_text()), f"{path}: {pattern}"


def test_wandb_stays_in_one_callback_and_the_dashboard() -> None:
    users = {name_of(path) for path in FILES if any(m.split(".")[0] == "wandb" for m in imports(path))}
    assert users <= {"lit.callbacks.tracked_queries", "wandb_workspace"}


VENDOR_TEXT = {"encoders/timm_image.py"}  # PyTorch and timm raise the same class for both cases
SEARCHES = {"startswith", "endswith", "find", "index", "count", "search", "match", "fullmatch", "findall"}


def searched_texts(tree: ast.AST) -> list[str]:
    """Return the expressions that search the text of an exception: one that was caught, or a parameter."""
    found = set()
    for scope in ast.walk(tree):
        if isinstance(scope, ast.ExceptHandler):
            names = {scope.name}
        elif isinstance(scope, ast.FunctionDef):
            typed = {arg.arg: ast.unparse(arg.annotation) for arg in scope.args.args if arg.annotation}
            names = {name for name, kind in typed.items() if kind.endswith(("Exception", "Error"))}
        else:
            continue
        texts = {text for name in names for text in (f"str({name})", f"{name}.reason", f"{name}.message")}
        for node in ast.walk(scope):
            parts: list[ast.expr] = []
            if isinstance(node, ast.Compare):
                parts = [node.left, *node.comparators]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in SEARCHES:
                parts = [node.func.value, *node.args]
            if any(ast.unparse(part) in texts for part in parts):
                found.add(ast.unparse(node))
    return sorted(found)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_code_decides_by_the_words_of_an_error(path: Path) -> None:
    found = searched_texts(ast.parse(path.read_text("utf-8")))
    assert bool(found) == (path.relative_to(SOURCE).as_posix() in VENDOR_TEXT), found


def test_a_search_of_an_errors_words_is_found() -> None:
    assert searched_texts(ast.parse("def f(error: OSError): return 'a' in str(error)")) == ["'a' in str(error)"]
    code = "try: f()\nexcept ValueError as error:\n    if {}: raise\n    reason = ' '.join(str(error).split())"
    for search in ("'pixels' in str(error)", "str(error).startswith('a')", "re.search('a', error.reason)"):
        assert searched_texts(ast.parse(code.format(search))) == [search]
    assert not searched_texts(ast.parse(code.format("error.kind == 'a'")))


OLD_COMMANDS = {"report", "draw", "dashboard"}  # names of entry points that were renamed


def entry_points() -> set[str]:
    """Return the modules that `python -m` runs."""
    return {name_of(path) for path in FILES if 'if __name__ == "__main__":' in path.read_text()} - {"launch"}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_imports_an_entry_point(path: Path) -> None:
    found = {module.removeprefix("mim_lightning.") for module in imports(path)} & entry_points()
    assert not found or name_of(path) in OLD_COMMANDS, f"{name_of(path)} imports {found}"
