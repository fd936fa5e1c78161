"""Means over seeds: Student's t against a printed table, groups against hand-made jobs."""

import math
import statistics

import pytest

from mim_lightning.sweep.seeds import mean_interval, over_seeds, t_quantile


@pytest.mark.parametrize(
    ("num_degrees", "level", "expected"),
    # as printed in any book of tables
    [(1, 0.95, 12.706), (2, 0.95, 4.303), (3, 0.95, 3.182), (4, 0.95, 2.776), (9, 0.95, 2.262), (10, 0.99, 3.169)],
)
def test_t_is_that_of_the_tables(num_degrees: int, level: float, expected: float) -> None:
    assert t_quantile(num_degrees, level) == pytest.approx(expected, abs=5e-4)


def test_t_nears_the_normal_distribution() -> None:
    assert t_quantile(3000) == pytest.approx(statistics.NormalDist().inv_cdf(0.975), abs=1e-3)


def test_a_mean_has_an_interval_from_two_jobs_on() -> None:
    mean, half = mean_interval([0.5, 0.7, 0.6])
    assert (mean, half) == (pytest.approx(0.6), pytest.approx(4.3027 * 0.1 / math.sqrt(3), abs=1e-4))
    assert mean_interval([0.5])[0] == 0.5 and math.isnan(mean_interval([0.5])[1])


def test_seeds_and_folds_are_averaged_and_nothing_else() -> None:
    jobs = [
        ({"model": model, "seed": seed, "data.protocol.fold": fold}, {"hit": float(seed) + 10 * float(fold)})
        for model in ("2tower", "3tower")
        for seed in "12"
        for fold in "01"
    ]
    settings = over_seeds([*jobs, ({"model": "4tower", "seed": "1"}, {"hit": 5.0, "mrr": 1.0})])
    assert [(s.label, s.num_jobs) for s in settings] == [("model=2tower", 4), ("model=3tower", 4), ("model=4tower", 1)]
    assert settings[0].means["hit"][0] == pytest.approx(6.5)
    assert list(settings[2].means) == ["hit", "mrr"]


def test_only_what_all_jobs_have_is_averaged() -> None:
    (setting,) = over_seeds([({"seed": "1"}, {"hit": 1.0, "mrr": 1.0}), ({"seed": "2"}, {"hit": 0.0})])
    assert setting.label == "" and list(setting.means) == ["hit"]
