"""One name for one sweep, wherever and however it runs."""

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from mim_lightning.config import conf_dir
from mim_lightning.former_names import present_overrides
from mim_lightning.sweep.sweep_id import name_sweep, own_config, pick_overrides, swept_keys, use_present_params


@pytest.fixture(autouse=True)
def unset_hydra() -> None:
    GlobalHydra.instance().clear()


def multirun(*overrides: str, params: dict[str, str] | None = None) -> DictConfig:
    """Compose what Hydra passes at the start of a multirun: values that vary are not in it."""
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        config = compose("train", [o for o in overrides if "," not in o or "[" in o], return_hydra_config=True)
    config.hydra.overrides.task = [override for override in overrides if not override.startswith("hydra")]
    if params is not None:
        config.hydra.sweeper.params = params
    return config


def test_the_name_depends_on_the_kind_and_on_what_varies() -> None:
    names = {
        name_sweep(multirun(*overrides))
        for overrides in (
            ["seed=1,2"],
            ["seed=1,2,3"],
            ["seed=1,2", "model=2tower"],
            ["seed=1,2", "optim.lr=0.5"],
            ["seed=1,2", "data=grocery"],
            ["seed=1,2", "hydra/sweeper=optuna"],
            ["sweep=towers"],
            ["sweep=optuna"],
            ["seed=1,2", "+encoder.training.train=frozen"],
        )
    }
    assert len(names) == 9
    assert {name.rsplit("-", 1)[0] for name in names} == {"grid", "optuna", "towers"}


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["data/order=grouped", "data.order.rows_per_product=1,2"], "grid-b6edefed"),
        (["report=last", "seed=1,2", "schedule.warmup_share=0.1"], "grid-e6aa4422"),
        (["data/order=stream,grouped", "model=3tower"], "grid-337a3ff1"),
        (["data/protocol=disjoint", "data.protocol.fold=0,1"], "grid-cdf26628"),
    ],
)
def test_a_sweep_of_former_keys_keeps_its_name(overrides: list[str], name: str) -> None:
    assert name_sweep(multirun(*present_overrides(overrides))) == name


def test_former_keys_in_a_users_own_sweep_are_renamed() -> None:
    former = multirun("data/sampling=grouped", params={"data.order.rows_per_product": "1,2", "seed": "1,2"})
    use_present_params(former)
    assert swept_keys(former) == ["data.sampling.samples_per_product", "seed"]
    assert name_sweep(former) == name_sweep(
        multirun("data/sampling=grouped", params={"data.sampling.samples_per_product": "1,2", "seed": "1,2"})
    )


def test_a_former_name_of_a_class_is_the_same_sweep() -> None:
    former = "encoder.image._target_=mim_lightning.encoders.tiny.TinyImage"
    present = "encoder.image._target_=mim_lightning.encoders.TinyImage"
    assert name_sweep(multirun("seed=1,2", former)) == name_sweep(multirun("seed=1,2", present))


def test_where_and_how_it_runs_does_not_matter() -> None:
    first = name_sweep(multirun("seed=1,2", "model=2tower,3tower"))
    elsewhere = [
        *(
            "trainer.devices=2",
            "data.feature_cache.enabled=true",
            "paths.runs=elsewhere",
            "logger=wandb",
            "callbacks.progress_bar=null",
        ),
        *("model=2tower,3tower", "seed=1,2", "hydra.launcher.n_jobs=2", "hydra/launcher=joblib"),
    ]
    assert name_sweep(multirun(*elsewhere)) == first == name_sweep(multirun("sweep=slurm", *elsewhere[-4:-2]))
    assert name_sweep(multirun("sweep=towers")) == name_sweep(multirun("sweep=[towers,slurm]"))


def test_the_command_line_wins_over_the_space_of_a_config() -> None:
    config = multirun("seed=5", "model=2tower,3tower", params={"seed": "1,2", "optim.lr": "interval(0, 1)"})
    assert swept_keys(config) == ["optim.lr", "model"]
    given = ["seed=5", "model=3tower", "optim.lr=0.5", "~model.pairs.query_product", "trial={number:3,study:'a=b'}"]
    assert pick_overrides(given, ["model", "optim.lr"]) == {"model": "3tower", "optim.lr": "0.5"}


def test_a_jobs_own_config_is_without_hydras() -> None:
    own = own_config(multirun("model=2tower"))
    assert "hydra" not in own and own.model.name == "2tower"
