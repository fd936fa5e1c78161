"""The Hugging Face hub: an export folder goes up, and comes down again into the hub's own cache.

`export` pushes, `opening` downloads. Tokens, endpoint and offline mode are those of huggingface_hub (`hf auth login`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

HUB_PREFIX = "hf://"
REPO = re.compile(r"[\w.-]+/[\w.-]+")


def is_hub_path(path: str | Path) -> bool:
    return isinstance(path, str) and path.startswith(HUB_PREFIX)


def download(path: str) -> Path:
    """Return the local folder of `hf://<user>/<repo>[@<revision>]`, fetched unless it is in the cache already.

    Raises:
        ValueError: not such a path, or the hub does not give it.
    """
    repo, _, revision = path.removeprefix(HUB_PREFIX).partition("@")
    check_repo(repo, path)
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(repo, revision=revision or None))
    except Exception as error:  # the hub's client raises a dozen kinds
        raise ValueError(f"{path}: cannot be fetched ({_reason(error)})") from error


def push(folder: Path, repo: str, private: bool) -> str:
    """Upload an export folder as a model repository, made if it is not there, and return its address.

    Raises:
        ValueError: no such name, a repository of something else, or the hub refuses it.
    """
    check_repo(repo, f"push={repo}")
    import huggingface_hub

    hub: Any = huggingface_hub.HfApi()
    try:
        hub.create_repo(repo, private=private, exist_ok=True)
        held = set(hub.list_repo_files(repo)) - {".gitattributes"}
        if held and "fingerprint" not in held:
            raise ValueError(f"it holds {sorted(held)[0]} and no export")
        # what an earlier export left goes with the same commit
        hub.upload_folder(
            repo_id=repo, folder_path=folder, delete_patterns=["*"], commit_message=f"Export {_fingerprint(folder)}"
        )
    except Exception as error:  # as above
        raise ValueError(f"push={repo}: the hub refused it ({_reason(error)}); {folder} is complete") from error
    return f"{HUB_PREFIX}{repo}"


def check_repo(repo: str, where: str) -> None:
    """Raise a ValueError unless it is <user>/<repo>."""
    if not REPO.fullmatch(repo):
        raise ValueError(f"{where}: give <user>/<repo>")


def _fingerprint(folder: Path) -> str:
    return (folder / "fingerprint").read_text().strip()


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
