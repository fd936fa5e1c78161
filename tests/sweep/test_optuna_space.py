"""Hydra's ranges as Optuna's distributions, and back."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from mim_lightning.sweep.optuna_space import read_space, write_overrides

optuna = pytest.importorskip("optuna", reason="needs the extra: pip install 'mim-lightning[sweep]'")
Categorical, Float, Int = (
    getattr(optuna.distributions, f"{kind}Distribution") for kind in ("Categorical", "Float", "Int")
)


def read(text: str) -> dict:
    (override,) = OverridesParser.create().parse_overrides([text])
    return read_space({override.get_key_element(): override})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr=interval(0.1, 1)", Float(0.1, 1.0)),
        ("lr=tag(log, interval(1e-4, 1e-2))", Float(1e-4, 1e-2, log=True)),
        ("width=int(interval(2, 8))", Int(2, 8)),
        ("width=tag(log, int(interval(2, 8)))", Int(2, 8, log=True)),
        ("width=range(2, 9, 3)", Int(2, 8, step=3)),  # the end is not reached, as in Python
        ("width=range(8, 2, -3)", Int(5, 8, step=3)),
        ("weight=range(0, 1.1, 0.25)", Float(0.0, 1.0, step=0.25)),
        ("model=2tower,3tower", Categorical(["2tower", "3tower"])),
        ("size=64,null,'a b',[1,2]", Categorical(["64", "null", "'a b'", "[1,2]"])),
        ("+new.key=1,2", Categorical(["1", "2"])),
    ],
)
def test_ranges_become_distributions(text: str, expected: object) -> None:
    assert read(text) == {text.split("=")[0]: expected}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr=tag(lgo, interval(1, 2))", r"lr=tag\(lgo, interval\(1, 2\)\): no tag 'lgo'; there is log"),
        ("lr=interval(2, 1)", r"lr=interval\(2, 1\): .*low <= high"),
        ("lr=tag(log, interval(0, 1.0))", "low > 0"),
        ("width=range(2, 2)", "is empty"),
        ("lr=0.1", "nothing to search; give ranges such as 'optim.lr="),
    ],
)
def test_invalid_ranges(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(text)


def test_parameters_are_written_as_overrides_that_read_the_same() -> None:
    params = {"lr": 0.00012345678901, "width": 3, "model": "2tower", "+size": "[1,2]"}
    assert write_overrides(params) == ["lr=0.000123457", "width=3", "model=2tower", "+size=[1,2]"]
    numpy = pytest.importorskip("numpy")
    assert write_overrides({"lr": numpy.float64(0.5)}) == ["lr=0.5"]
