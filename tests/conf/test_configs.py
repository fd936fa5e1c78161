"""Every option of every group composes and builds; a misspelt key is an error that names the right one."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mim_lightning.config import build, build_each, build_matcher, build_objective, compose, conf_dir
from mim_lightning.lit.run_description import describe_encoder_values
from mim_lightning.run import identify
from mim_lightning.types import Direction
from tests.encoders.vision_language import write_vision_language_model

CONF = Path(conf_dir())
NEEDS_VALUES = {
    "model=joint": ["encoder=qwen3_vl"],
    "data=manifest": ["data.source.products=p", "data.source.queries=q"],
    "experiment=small_catalog": ["data.source.products=p", "data.source.queries=q"],
    "data=clicks": [f"data.source.{name}=t" for name in ("impressions", "products", "queries")],
    "data=shards": ["data.folder=f"],
    "data=huggingface": ["data.source.products.path=p", "data.source.queries.path=q"],
    "data=webdataset": ["data.source.shards.train=t.tar"],
}
OPTIONS = sorted(
    f"{path.parent.relative_to(CONF)}={path.stem}"
    for path in CONF.rglob("*.yaml")
    if path.parent != CONF and not path.parent.is_relative_to(CONF / "encoder") and path.stem != "base"
)
ENCODERS = sorted(
    str(path.relative_to(CONF / "encoder").with_suffix("")) for path in (CONF / "encoder").rglob("*.yaml")
)
# their tokenizer or architecture comes from a hub: without a network one clear line
NEEDS_NETWORK = {f"text/{name}" for name in ("bert_base", "embeddinggemma", "qwen3_embedding")}
NEEDS_NETWORK |= {"text/siglip_b16", "text/siglip2_b16", "image_text/qwen3_vl"}


def compose_option(option: str, tmp_path: Path) -> dict:
    return compose("train", [option, *NEEDS_VALUES.get(option, []), f"paths.runs={tmp_path}"])


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_builds(option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = compose_option(option, tmp_path)
    group = option.split("=")[0]
    if group == "experiment":  # a recipe: its parts are the options tested here
        config["encoder"]["image"].pop("pretrained", None)
        return
    if group == "trainer":
        # without its GPUs a machine can build no GPU trainer; everything else about it is checked
        accelerator = {"accelerator": "cpu", "devices": 1, "precision": "32-true", "sync_batchnorm": False}
        build(config["trainer"] | accelerator, logger=False)
    if group == "model":
        for tower in config["model"]["towers"].values():
            if tower["encoder"]["_target_"].endswith("HfImageText"):  # from a hub: a tiny one instead
                tower["encoder"] = write_vision_language_model(tmp_path / "model")
        matcher = build_matcher(config)
        build_objective(config, matcher.names)
        ends = {end for d in config["directions"].values() for end in (d["query"], d["gallery"])}
        assert ends <= set(matcher.names)
        assert config["monitor"].split("/")[1] in config["directions"]
    if group == "loss":
        build_objective(config, build_matcher(config).names)
    if group == "optim":
        weights = [torch.nn.Parameter(torch.zeros(2))]
        build(config["optim"])["optimizer"](weights, lr=0.1)
    if group == "schedule":
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=1.0)
        build(config["schedule"])(optimizer, 10)
    if group == "data":
        build(config["data"], specs={})
    build_each(config["callbacks"])
    if group == "logger":
        build_each(config["logger"])


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_encoder_composes_and_builds(encoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    group, _, name = encoder.rpartition("/")
    override = f"encoder/{group}={name}" if group else f"encoder={name}"
    config = compose("train", [f"+{override}" if group == "image_text" else override, "embed_dim=16"])
    for part in [group] if group else [part for part in ("image", "text", "image_text") if config["encoder"].get(part)]:
        if "pretrained" in config["encoder"][part]:
            config["encoder"][part]["pretrained"] = None
        if f"{part}/{name}" in NEEDS_NETWORK:
            with pytest.raises(ValueError, match=r"^encoder '[^\n]*$"):
                build(config["encoder"][part])
        else:
            # shapes without memory, for one of them has a billion parameters; transformers cannot do that
            is_hub_text = config["encoder"][part]["_target_"].endswith("HfText")
            with torch.device("cpu" if is_hub_text else "meta"):
                assert build(config["encoder"][part]).width > 0


FROM_SCRATCH = (1e-3, 0.05, 14.285714, "auto")


def values_of(*overrides: str) -> tuple[float, float, float, str]:
    """Return rate, decay, scale and precision that a command composes."""
    config = compose("train", list(overrides))
    optim, loss, trainer = config["optim"], config["loss"], config["trainer"]
    return optim["lr"], optim["weight_decay"], loss["init_scale"], trainer["precision"]


@pytest.mark.parametrize(
    ("pair", "values"),
    [
        ("tiny", FROM_SCRATCH),
        ("mobilenetv2_tiny", FROM_SCRATCH),
        ("mobilenetv2_minilm", FROM_SCRATCH),
        ("clip_vit_b32", (1e-5, 0.1, 100.0, "auto")),
        ("clip_vit_g14", (5e-6, 0.1, 100.0, "auto")),
        ("siglip_b16", (1e-5, 0.1, 100.0, "auto")),
        ("siglip2_b16", (1e-5, 0.1, 100.0, "auto")),
        ("pe_core_b16", (1e-5, 0.1, 100.0, "auto")),
        ("mobileclip2_s2", (1e-5, 0.1, 100.0, "auto")),
    ],
)
def test_a_command_composes_what_suits_its_encoder(pair: str, values: tuple) -> None:
    assert values_of(f"encoder={pair}") == values
    given = ("optim.lr=0.5", "optim.weight_decay=0.25", "loss.init_scale=7", "trainer.precision=32-true")
    assert values_of(f"encoder={pair}", *given) == (0.5, 0.25, 7, "32-true")
    assert values_of(f"encoder={pair}", "optim=sgd")[:2] == (0.1, 1e-4)  # rates of another kind


@pytest.mark.parametrize("experiment", sorted(path.stem for path in (CONF / "experiment").glob("*.yaml")))
def test_experiments_keep_their_values(experiment: str) -> None:
    rate = 3e-3 if experiment == "small_catalog" else FROM_SCRATCH[0]
    option = f"experiment={experiment}"
    assert values_of(option, *NEEDS_VALUES.get(option, [])) == (rate, *FROM_SCRATCH[1:])


@pytest.mark.parametrize("model", ["2tower", "3tower", "4tower"])
def test_a_small_catalog_trains_projections_alone_with_any_towers(model: str) -> None:
    option = "experiment=small_catalog"
    towers = compose("train", [option, f"model={model}", *NEEDS_VALUES[option]])["model"]["towers"]
    assert {tower["train"] for tower in towers.values()} == {"frozen"}
    assert describe_encoder_values(compose("train", [option, *NEEDS_VALUES[option]])) is not None


def test_an_encoder_whose_config_says_nothing_is_trained_as_from_scratch() -> None:
    assert values_of("encoder=clip_vit_b32", "~encoder.training") == FROM_SCRATCH


def test_values_of_the_encoders_config_are_reported() -> None:
    config = compose("train", ["encoder=clip_vit_b32", "optim.lr=3e-5"])
    assert describe_encoder_values(config) == (
        "from the encoder's config: optim.weight_decay=0.1, loss.init_scale=100, trainer.precision=auto"
    )
    assert describe_encoder_values(compose("train", [])) is None


def test_where_a_value_comes_from_is_not_in_the_run_id() -> None:
    def run_id(*overrides: str) -> str:
        return identify(compose("train", ["encoder=mobilenetv2_tiny", *overrides]))[0].run_id

    assert run_id() == run_id("~encoder.training") == run_id("optim.lr=1e-3") != run_id("optim.lr=2e-3")


def test_directions_build_to_the_type() -> None:
    config = compose("train", ["model=4tower"])
    directions = {name: Direction(**ends) for name, ends in config["directions"].items()}
    assert directions["image_to_asked_product"].truth == "target"
    assert directions["image_to_product"].truth == "reference"
    assert directions["composed_to_product"].truth == "target"
    with pytest.raises(ValueError, match="relevance is 'target' or 'reference', not 'askd'"):
        Direction("query", "product", relevance="askd")


def test_entries_are_changed_and_removed_by_name() -> None:
    config = compose("train", ["model.pairs.query_image_product_text.weight=0.5", "~model.pairs.query_product"])
    assert config["model"]["pairs"]["query_image_product_text"]["weight"] == 0.5
    assert "query_product" not in config["model"]["pairs"]


def test_one_tower_gets_another_encoder() -> None:
    overrides = ["model.tied.product_image=null", "+encoder/image@model.towers.product_image.encoder=resnet50"]
    towers = compose("train", overrides)["model"]["towers"]
    assert towers["product_image"]["encoder"]["name"].startswith("resnet50")
    assert towers["query_image"]["encoder"]["_target_"].endswith("TinyImage")


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("train", ["trainer.device=8"], "error: no config key 'trainer.device'; did you mean 'trainer.devices'"),
        ("train", ["modle=4tower"], "error: no config key 'modle'; did you mean 'model'"),
        ("train", ["model=5tower"], "error: no option '5tower' in config group 'model'; there are 2tower"),
        ("train", ["+trainer.max_epoch=3"], "unexpected keyword argument 'max_epoch'"),
        (
            "train",
            ["model.pairs.query_product.right=products"],
            "error: model.pairs.query_product: no tower or fusion",
        ),
        ("train", ["init_from=/nowhere.ckpt"], "error: /nowhere.ckpt: no such checkpoint file"),
        ("train", ["data=manifest"], "error: data.source.products: needs a value"),
        ("train", ["results_from=final"], "error: results_from=final: give best or last"),
        (
            "train",
            ["results_from=last", "callbacks.last.every_n_train_steps=5"],
            "error: results_from=last: callbacks.last.every_n_train_steps may miss",
        ),
        (
            "train",
            ["trainer.max_epochs=2", "+trainer.check_val_every_n_epoch=3"],
            "error: trainer.check_val_every_n_epoch=3: results_from=best would never see any of 2 epochs",
        ),
        (
            "train",
            ["results_from=last", "trainer.max_epochs=5", "+trainer.check_val_every_n_epoch=3"],
            "error: trainer.check_val_every_n_epoch=3: results_from=last would never see the last of 5 epochs",
        ),
        (
            "train",
            ["encoder/image=mobilenetv2", "encoder.image.name=mobilnet"],
            "error: encoder 'mobilnet': no such",
        ),
        ("evaluate", [], "error: checkpoint: needs a value"),
        ("evaluate", ["checkpoint=/nowhere.ckpt"], "error: /nowhere.ckpt: no such checkpoint file"),
        (
            "prepare",
            ["data=grocery", "paths.external=/nowhere"],
            "error: /nowhere/data/grocery: no grocery set found",
        ),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    name: str,
    overrides: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *overrides])
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(f"mim_lightning.{name}").main()
    errors = capfd.readouterr().err
    lines = [line for line in errors.splitlines() if line.startswith("error:")]
    assert stopped.value.code not in (0, None)
    assert len(lines) == 1 and message in lines[0], errors
    assert "Traceback" not in errors
    assert not list(tmp_path.rglob("*.ckpt")) and not list(tmp_path.rglob("results.json"))


def test_the_exit_code_of_a_mistake_reaches_the_shell(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mim_lightning.train", "trainer.device=8"]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert finished.returncode == 2
    assert finished.stderr == "error: no config key 'trainer.device'; did you mean 'trainer.devices'?\n"
