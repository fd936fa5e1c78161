"""The Hugging Face hub: an export folder goes up, and comes down again into the hub's own cache.

`export` pushes, `opening` downloads. Tokens, endpoint and offline mode are those of huggingface_hub (`hf auth login`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

HUB_PREFIX = "hf://"
REPO = re.compile(r"[\w.-]+/[\w.-]+")
ADVICE = ("For more", "Please make sure", "If you are trying")  # how the client's lines begin that tell no fact
LOG_IN = "what is private or yours wants a token: `hf auth login`, or HF_TOKEN"


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
        ValueError: no such name, a repository of something else, a public one unless that is wanted, or the hub
            refuses it.
    """
    check_repo(repo, f"push={repo}")
    import huggingface_hub

    hub: Any = huggingface_hub.HfApi()
    try:
        hub.create_repo(repo, private=private, exist_ok=True)
        held = set(hub.list_repo_files(repo)) - {".gitattributes"}
        if held and "fingerprint" not in held:
            raise ValueError(f"it holds {sorted(held)[0]} and no export")
        if private and not hub.model_info(repo).private:  # one that was there keeps its visibility
            raise ValueError("it is there and public; give private=false to publish")
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
    """Return what the hub's client says in one line, and how to say who asks where the hub wants to know."""
    lines = [line.strip() for line in str(error).splitlines()]  # the client has no other place for its advice
    told = " ".join(line for line in lines if line and not line.startswith(ADVICE))
    told = f"{type(error).__name__}: {told}" if told else type(error).__name__
    status = getattr(getattr(error, "response", None), "status_code", None)
    # what is private looks absent to strangers
    is_stranger = status in (401, 403) or type(error).__name__ == "RepositoryNotFoundError"
    return f"{told}; {LOG_IN}" if is_stranger else told
