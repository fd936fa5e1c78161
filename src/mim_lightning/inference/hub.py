"""Export folders on the Hugging Face hub: upload, and download into the hub's own cache.

Tokens, endpoint and offline mode are those of huggingface_hub (`hf auth login`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

HUB_PREFIX = "hf://"
REPO = re.compile(r"[\w.-]+/[\w.-]+")
ADVICE = ("For more", "Please make sure", "If you are trying")  # how lines of the client begin that state no fact
LOG_IN = "private repositories and uploads need a token: `hf auth login`, or HF_TOKEN"


def is_hub_path(path: str | Path) -> bool:
    return isinstance(path, str) and path.startswith(HUB_PREFIX)


def download_export(path: str) -> Path:
    """Return the local folder of `hf://<user>/<repo>[@<revision>]`, downloaded unless it is in the cache.

    Raises:
        ValueError: not such a path, or the download failed.
    """
    repo, _, revision = path.removeprefix(HUB_PREFIX).partition("@")
    validate_repo(repo, path)
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(repo, revision=revision or None))
    except Exception as error:  # the hub's client raises a dozen kinds
        raise ValueError(f"{path}: cannot be downloaded ({_reason(error)})") from error


def push(folder: Path, repo: str, private: bool) -> str:
    """Upload an export folder as a model repository, created if it does not exist, and return its address.

    Raises:
        ValueError: not a repository's name, a repository of something else, a public one with `private`, or the hub
            refused the upload.
    """
    validate_repo(repo, f"push_to_hub={repo}")
    import huggingface_hub

    hub: Any = huggingface_hub.HfApi()
    try:
        hub.create_repo(repo, private=private, exist_ok=True)
        held = set(hub.list_repo_files(repo)) - {".gitattributes"}
        if held and "fingerprint" not in held:
            raise ValueError(f"it holds {sorted(held)[0]} and no export")
        if private and not hub.model_info(repo).private:  # an existing one keeps its visibility
            raise ValueError("it exists and is public; give private=false to publish")
        # the same commit deletes the files of an earlier export
        message = f"Export {(folder / 'fingerprint').read_text().strip()}"
        hub.upload_folder(repo_id=repo, folder_path=folder, delete_patterns=["*"], commit_message=message)
    except Exception as error:  # as above
        raise ValueError(f"push_to_hub={repo}: the hub refused it ({_reason(error)}); {folder} is complete") from error
    return f"{HUB_PREFIX}{repo}"


def validate_repo(repo: str, where: str) -> None:
    """Raise a ValueError unless it is <user>/<repo>."""
    if not REPO.fullmatch(repo):
        raise ValueError(f"{where}: give <user>/<repo>")


def _reason(error: Exception) -> str:
    """Return the message of the hub's client in one line, with how to log in where that may help."""
    lines = [line.strip() for line in str(error).splitlines()]  # the client has no other place for its advice
    facts = " ".join(line for line in lines if line and not line.startswith(ADVICE))
    reason = f"{type(error).__name__}: {facts}" if facts else type(error).__name__
    status = getattr(getattr(error, "response", None), "status_code", None)
    # without a token, a private repository looks as if it did not exist
    needs_token = status in (401, 403) or type(error).__name__ == "RepositoryNotFoundError"
    return f"{reason}; {LOG_IN}" if needs_token else reason
