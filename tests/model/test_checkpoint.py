"""A matcher is loaded from its file alone, initializes towers of another, and refuses foreign files."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mim_lightning.config import build_matcher, build_objective, compose
from mim_lightning.inference.export_writer import ReferenceData, export_model
from mim_lightning.inference.loading import load
from mim_lightning.model.checkpoint import (
    PREFIX,
    SECTION,
    WarmStart,
    describe_checkpoint,
    load_matcher,
    stored_fingerprint,
    warm_start,
)
from mim_lightning.model.fingerprint import fingerprint
from mim_lightning.model.matcher import Matcher
from tests.shop import small


def config(*overrides: str) -> dict:
    return compose("train", small(Path("unused"), *overrides))


def start(matcher: Matcher, path: Path, *overrides: str) -> WarmStart:
    return warm_start(matcher, build_objective(config(*overrides), matcher.names), path)


def save(folder: Path, *overrides: str, seed: int = 0) -> tuple[Path, torch.nn.Module]:
    torch.manual_seed(seed)
    matcher = build_matcher(config(*overrides))
    state = {PREFIX + name: value for name, value in matcher.state_dict().items()}
    path = folder / "model.ckpt"
    torch.save({"state_dict": state, SECTION: describe_checkpoint(matcher, config(*overrides))}, path)
    return path, matcher


def test_round_trip_gives_equal_weights_and_fingerprint(tmp_path: Path) -> None:
    path, matcher = save(tmp_path)
    loaded = load_matcher(path)
    assert loaded.fingerprint == torch.load(path, weights_only=True)[SECTION]["fingerprint"]
    for name, value in matcher.state_dict().items():
        assert torch.equal(value, loaded.matcher.state_dict()[name])


def test_a_checkpoint_of_a_former_version_keeps_its_fingerprint(tmp_path: Path) -> None:
    path, matcher = save(tmp_path)
    content = torch.load(path, weights_only=True)
    current, former = content[SECTION]["fingerprint"], fingerprint(matcher, like="0" * 16)
    content[SECTION]["fingerprint"] = former
    torch.save(content, path)
    assert load_matcher(path).fingerprint == stored_fingerprint(path) == former
    assert load_matcher(path, like=former).fingerprint == former and load(path).fingerprint == former
    # an index of the other fingerprint fits: these are the same weights
    assert load_matcher(path, like="xxh3-0").fingerprint == current == load(path, like="xxh3-0").fingerprint
    exported = tmp_path / "exported"
    export_model(load_matcher(path), exported, ReferenceData(None))
    assert load(exported).fingerprint == former and load(exported, like="xxh3-0").fingerprint == current
    content["state_dict"][next(iter(content["state_dict"]))].view(-1)[0] += 1
    torch.save(content, path)
    with pytest.raises(ValueError, match=f"fingerprint [0-9a-f]{{16}}, {former} in the file: it was changed"):
        load_matcher(path)


def test_loading_needs_no_trainer(tmp_path: Path) -> None:
    path, _ = save(tmp_path)
    code = (
        "import sys; from mim_lightning.model.checkpoint import load_matcher; "
        f"load_matcher({str(path)!r}); assert 'lightning' not in sys.modules and 'hydra.main' not in sys.argv"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_3_tower_starts_a_4_tower_whole(tmp_path: Path) -> None:
    path, three = save(tmp_path, "model=3tower")
    four = build_matcher(config("model=4tower"))
    report = start(four, path)
    assert not report.fresh and not report.unused
    assert all(torch.equal(value, three.state_dict()[name]) for name, value in four.state_dict().items())


def test_an_untied_tower_starts_from_the_shared_one(tmp_path: Path) -> None:
    path, three = save(tmp_path, "model=3tower")
    untied = build_matcher(config("model=3tower", "model.tied.product_image=null"))
    assert not start(untied, path, "model=3tower").fresh
    key = "projection.weight"
    assert torch.equal(
        untied.state_dict()[f"towers.product_image.{key}"], three.state_dict()[f"towers.query_image.{key}"]
    )


def test_loaded_and_missing_tensors_are_reported(tmp_path: Path) -> None:
    path, _ = save(tmp_path, "model=2tower")
    description = start(build_matcher(config("model=3tower")), path, "model=3tower").describe()
    assert "loaded into towers.query_image" in description
    assert "not in the checkpoint, newly initialized: towers.product_text" in description


def test_a_fusion_with_another_tower_starts_new(tmp_path: Path) -> None:
    settings = ["model=4tower", "model.fusions.query.center=running"]
    path, _ = save(tmp_path, *settings)
    content = torch.load(path, weights_only=True)
    content["state_dict"][f"{PREFIX}fusions.query.num_mean_updates"].fill_(100)
    torch.save(content, path)
    same, more = (build_matcher(config(*settings, *added)) for added in ([], ["+model.fusions.query.product_text=1"]))
    assert not start(same, path, *settings).fresh and same.fusions["query"].num_mean_updates == 100
    report = start(more, path, *settings)
    assert more.fusions["query"].num_mean_updates == 0  # at 100 the mean of the new tower would stay near its zeros
    assert {*report.fresh} == {name for name in more.state_dict() if name.startswith("fusions.query.")}


def test_another_shape_is_refused_by_name(tmp_path: Path) -> None:
    path, _ = save(tmp_path)
    with pytest.raises(ValueError, match=r"'towers.query_image.projection.weight' has shape \(16, 64\), .* \(8, 64\)"):
        start(build_matcher(config("embed_dim=8")), path)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_a_file_that_is_no_checkpoint_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.ckpt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.ckpt: (no such checkpoint file|damaged)") as error:
        load_matcher(path)
    assert "\n" not in str(error.value)


def test_a_foreign_or_changed_file_is_refused(tmp_path: Path) -> None:
    path, _ = save(tmp_path)
    content = torch.load(path, weights_only=True)
    next(iter(content["state_dict"].values())).view(-1)[0] += 1
    torch.save(content, path)
    with pytest.raises(ValueError, match="it was changed"):
        load_matcher(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(ValueError, match="not a checkpoint of mim_lightning"):
        load_matcher(path)


def test_a_file_that_names_foreign_code_is_refused(tmp_path: Path) -> None:
    path, _ = save(tmp_path)
    content = torch.load(path, weights_only=True)
    content[SECTION]["config"]["model"]["towers"]["query_image"]["encoder"]["_target_"] = "os.system"
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"wants to build 'os\.system'"):
        load_matcher(path)


def test_nothing_in_common_is_refused(tmp_path: Path) -> None:
    path, _ = save(tmp_path, "model=2tower")
    torch.manual_seed(0)
    content = torch.load(path, weights_only=True)
    content["state_dict"] = {}
    torch.save(content, path)
    with pytest.raises(ValueError, match="has no tower of this model"):
        start(build_matcher(config("model=3tower")), path, "model=3tower")
