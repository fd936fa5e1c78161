"""What docs/deployment.md quotes is in the files, the keys and the metrics."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from mim_lightning.config import compose
from mim_lightning.search.service.app import ROUTES
from mim_lightning.search.service.prometheus import ServiceMetrics

DOCS = Path(__file__).parents[3] / "docs"
TEXT = (DOCS / "deployment.md").read_text()


def test_quoted_lines_are_in_the_files() -> None:
    (quoted,) = re.findall(r"```nginx\n(.*?)```", TEXT, re.DOTALL)
    assert quoted in (DOCS / "deployment" / "nginx.conf").read_text()
    for file in re.findall(r"\]\((deployment/[^)]+)\)", TEXT):
        assert (DOCS / file).is_file()


def test_quoted_keys_and_metrics_exist() -> None:
    config = compose("serve", ["index=none"])
    for key in re.findall(r"`limits\.(\w+)`", TEXT):
        assert key in config["limits"]
    for key, default in (("connections_per_client", 64), ("connections", 512), ("idle_seconds", 30)):
        assert config["limits"][key] == default and re.search(rf"`limits\.{key}` \| {default}", TEXT)
    exposed = ServiceMetrics(ROUTES).expose().decode()
    for name in re.findall(r"`(mim_\w+)", TEXT):
        assert name.removesuffix("_total") in exposed, name


def test_the_proxy_has_the_limits_of_the_service() -> None:
    limits = compose("serve", ["index=none"])["limits"]
    text = (DOCS / "deployment" / "nginx.conf").read_text()
    megabytes, idle = (
        int(re.search(pattern, text)[1]) for pattern in (r"body_size (\d+)m;", r"keepalive_timeout (\d+)s;")
    )  # type: ignore[index]
    assert megabytes * 1_000_000 >= limits["upload_bytes"] > (megabytes - 1) * 1_000_000
    assert idle < limits["idle_seconds"]
