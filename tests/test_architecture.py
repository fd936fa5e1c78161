"""Rules of the architecture: the package of each vendor, the docstring of each file.

`make lint` checks which package imports which, by the contracts in pyproject.toml.
"""

import ast
import functools
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "mim_lightning"
FILES = sorted(SOURCE.rglob("*.py"))

ROOT = SOURCE.parents[1]
LARGEST_DATA_PACKAGE = 16  # files
EXTRA_PACKAGES = (  # what needs an extra: the core imports it inside functions
    *("analysis.figures", "encoders.open_clip", "encoders.open_clip_weights", "inference.onnx", "online"),
    *("data.preparation.ray_cluster", "data.preparation.ray_engine", "data.preparation.ray_tables"),
    *("data.preparation.ray_tasks", "search.index.milvus_index", "search.service"),
    *("sweep.optuna_space", "sweep.optuna_study", "sweep.optuna_sweeper"),
)
VENDORS = {  # library -> packages that may import it
    "aiohttp": {"io"},
    "fsspec": {"data", "io"},
    "lightning": {"checkpoint_evaluation", "lit", "training"},
    "hydra": {"config", "config_groups", "cli", "errors", "sweep"},
    "omegaconf": {"config", "cli", "errors", "sweep"},
    "timm": {"encoders"},
    "torchvision": {"inference"},
    "transformers": {"encoders"},
    "open_clip": {"encoders"},
    "peft": {"model"},
    "faiss": {"search"},
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
    "wandb": {"lit", "analysis"},  # see below; all else goes through conf/logger and Lightning's logger
    "wandb_workspaces": {"analysis"},
    "fastapi": {"search"},
    "starlette": {"search"},
    "gradio": {"search"},
    "prometheus_client": {"search"},
    "uvicorn": {"serve", "search"},
    "pymilvus": {"search"},
    "milvus_lite": {"search"},
    "huggingface_hub": {"inference", "data", "encoders"},
    "datasets": {"data"},
    "sentence_transformers": {"inference"},
    "onnx": {"inference"},
    "onnxruntime": {"inference"},
    "onnxscript": {"inference"},
    "sqlalchemy": {"online"},
    "statsmodels": {"online"},
}
FORBIDDEN_NAMES = {"utils", "misc", "common", "helpers", "manager"}


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


@functools.cache
def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found += [node.module or ""]
    return found


def name_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports_at_import(tree: ast.AST) -> Iterator[str]:
    """Yield what a module imports when it is imported itself: not in functions, not for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from imports_at_import(ast.Module(node.orelse, []))
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imports_at_import(node)


def extra_of(name: str) -> str:
    return next((extra for extra in EXTRA_PACKAGES if f"{name}.".startswith(f"{extra}.")), "")


@pytest.mark.parametrize("path", [path for path in FILES if not extra_of(name_of(path))], ids=name_of)
def test_the_core_imports_extras_inside_functions(path: Path) -> None:
    modules = imports_at_import(parsed(path))
    found = [module for module in modules if extra_of(module.removeprefix("mim_lightning."))]
    assert not found, f"{name_of(path)} imports {found}"


def test_packages_of_data_are_small() -> None:
    sizes = Counter(name_of(path.parent) for path in FILES if name_of(path).startswith("data."))
    assert max(sizes.values()) <= LARGEST_DATA_PACKAGE, sizes.most_common(3)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_vendor_has_its_package(path: Path) -> None:
    package = name_of(path).split(".")[0]
    for module in imports(path):
        vendor = module.split(".")[0]
        assert package in VENDORS.get(vendor, {package}), f"{vendor} does not belong into {package}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_have_a_docstring_and_a_name(path: Path) -> None:
    assert not FORBIDDEN_NAMES & set(path.relative_to(SOURCE).with_suffix("").parts)
    if parsed(path).body:
        assert ast.get_docstring(parsed(path)), f"{path} has no docstring"


def test_collectives_stay_in_gather_and_metrics() -> None:
    users = {name_of(path) for path in FILES if any(m.startswith("torch.distributed") for m in imports(path))}
    sharding = {"model.sharding", "model.sharded_checkpoint", "model.gradient_cache", "lit.fully_sharded"}
    # launch: torchrun, which starts the processes
    assert users <= {"losses.gather", "metrics.collectives", "launch", "lit.trainer", *sharding}


UNSAFE = {  # what would run code from a file -> modules that may: no untrusted files reach them
    r"pickle\.loads?\(": {"data.preparation.ray_tasks"},  # rows that tasks of the same job packed
    r"weights_only=False": {
        "lit.trainer",
        "lit.callbacks.preemption",
    },  # Lightning's argument for saving whole checkpoints
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


def test_wandb_stays_in_one_callback_and_the_workspace() -> None:
    users = {name_of(path) for path in FILES if any(m.split(".")[0] == "wandb" for m in imports(path))}
    assert users <= {"lit.callbacks.tracked_queries", "analysis.workspace"}


VENDOR_TEXT = {"encoders/timm_image.py"}  # PyTorch and timm raise the same class for both cases
SEARCHES = {"startswith", "endswith", "find", "index", "count", "search", "match", "fullmatch", "findall"}


def searched_texts(tree: ast.AST) -> list[str]:
    """Return the expressions that search the text of an exception: one that was caught, or a parameter."""
    found = set()
    for scope in ast.walk(tree):
        if isinstance(scope, ast.ExceptHandler):
            names = {scope.name} - {None}
        elif isinstance(scope, ast.FunctionDef):
            typed = {arg.arg: ast.unparse(arg.annotation) for arg in scope.args.args if arg.annotation}
            names = {name for name, kind in typed.items() if kind.endswith(("Exception", "Error"))}
        else:
            continue
        texts = {text for name in names for text in (f"str({name})", f"{name}.reason", f"{name}.message")}
        for node in ast.walk(scope) if texts else ():
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
    found = searched_texts(parsed(path))
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
