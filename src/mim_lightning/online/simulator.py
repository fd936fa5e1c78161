"""Online experiments that are made up: what users of a click model do, as events through the log or as bare sums.

A click model and rankings come in. `simulate_events` writes all that a service would; `simulate_sums` and
`simulate_looks` draw many experiments at once as arrays, to measure how often the report is right.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from mim_lightning.online.arms import Arm, assign, hash_user
from mim_lightning.online.click_model import ClickModel, Relevance
from mim_lightning.online.counts import UserSums
from mim_lightning.online.event_log import EventLog
from mim_lightning.online.events import Click, Impression, Shown

START = datetime(2026, 1, 1, tzinfo=UTC)
RELEVANCE = tuple(0.7 * position**-0.5 for position in range(1, 11))  # of the control, our choice
_USERS_AT_ONCE = 500  # in one transaction


def simulate_sums(
    model: ClickModel, relevance: Relevance, num_repeats: int, num_users: int, rng: np.random.Generator
) -> UserSums:
    """Return the sums of one arm in many experiments, arrays (num_repeats,)."""
    rates_RU = _draw_rates(model, relevance, (num_repeats, num_users), rng)
    impressions_RU = rng.geometric(1 / model.queries_per_user, rates_RU.shape)
    return UserSums.of_users(impressions_RU, rng.binomial(impressions_RU, rates_RU))


def simulate_looks(
    model: ClickModel,
    relevance: Relevance,
    num_repeats: int,
    num_looks: int,
    num_users: int,
    rng: np.random.Generator,
    returning: bool = False,
) -> UserSums:
    """Return the sums of one arm as they stand at each of many looks, arrays (num_repeats, num_looks).

    Args:
        num_users: who came until the last look; as many between any two.
        returning: all users may come between any two looks (each as often as a Poisson number says) instead of new
            ones each time: the rows of a user then grow while one looks.
    """
    size = num_users // num_looks
    shape = (num_repeats, num_users if returning else size)
    rates, total_n, total_c, sums = None, np.zeros(shape, int), np.zeros(shape, int), []
    for _ in range(num_looks):
        if rates is None or not returning:
            rates = _draw_rates(model, relevance, shape, rng)
        if returning:
            n = rng.poisson(model.queries_per_user / num_looks, shape)
            total_n += n
            total_c += rng.binomial(n, rates)
            sums.append(UserSums.of_users(total_n, total_c))
        else:
            n = rng.geometric(1 / model.queries_per_user, shape)
            sums.append(UserSums.of_users(n, rng.binomial(n, rates)))
    stacked = {name: np.stack([np.asarray(getattr(s, name)) for s in sums], axis=1) for name in vars(sums[0])}
    return UserSums(**(stacked if returning else {name: part.cumsum(axis=1) for name, part in stacked.items()}))


def simulate_events(
    log: EventLog,
    model: ClickModel,
    relevance: Mapping[str, Relevance],
    arms: Mapping[str, Arm],
    experiment: str,
    num_users: int,
    salt: str,
    seed: int = 0,
) -> None:
    """Write an experiment into the log: users are assigned, shown products, and click.

    Args:
        relevance: of the ranking of each arm, by name.
        num_users: of all arms together, called "user-0" and so on.
        salt: of the hashes.
    """
    rng = np.random.default_rng(seed)
    for start in range(0, num_users, _USERS_AT_ONCE):
        impressions: list[Impression] = []
        clicks: list[Click] = []
        for number in range(start, min(start + _USERS_AT_ONCE, num_users)):
            key = f"user-{number}"
            arm = assign(key, arms, experiment, salt).name
            num_queries = int(rng.geometric(1 / model.queries_per_user))
            is_relevant_NK = rng.random((num_queries, len(model.examination))) < np.asarray(relevance[arm])
            eagerness_N = np.full(num_queries, rng.choice(model.eagerness))
            is_clicked_NK = rng.random(is_relevant_NK.shape) < model.click_chances(is_relevant_NK, eagerness_N)
            for query, (is_relevant_K, is_clicked_K) in enumerate(zip(is_relevant_NK, is_clicked_NK, strict=True)):
                time = START + timedelta(minutes=number, seconds=query)
                shown = _answer(is_relevant_K)
                made = Impression(
                    experiment, arm, hash_user(key, salt), "composed", shown, 10.0, f"model-{arm}", time=time
                )
                impressions.append(made)
                clicks += [
                    Click(made.impression_id, product.product_id, time + timedelta(seconds=1))
                    for product, is_clicked in zip(shown, is_clicked_K, strict=True)
                    if is_clicked
                ]
        log.record_many(impressions, clicks)


def _draw_rates(
    model: ClickModel, relevance: Relevance, shape: tuple[int, int], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return each user's own click-through rate, (R, U)."""
    levels_RU = rng.integers(len(model.eagerness), size=shape)
    return model.click_rates(relevance)[levels_RU]


def _answer(is_relevant_K: NDArray[np.bool_]) -> list[Shown]:
    return [
        Shown(f"{'relevant' if is_relevant else 'other'}-{position}", 1 - position / len(is_relevant_K))
        for position, is_relevant in enumerate(is_relevant_K)
    ]
