"""The files of a published model: found in a local folder or on the model hub, and told apart by their hashes."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

from recbole_qbert.utils.io import sha256


def require_installed(*modules: str) -> None:
    """Refuse to start without the libraries of the encoders.

    Raises:
        ValueError: one of them is not installed.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"{', '.join(missing)} not installed; the encoders need: pip install 'recbole-qbert[encoders]' (in a checkout: "
            "pip install -c constraints.txt -e '.[encoders]')"
        )


def hub_folder(name: str, patterns: Sequence[str]) -> Path:
    """Folder with a hub model's files, downloaded unless the hub's cache has them.

    Args:
        name: ``owner/name``.
        patterns: the files wanted; those of subfolders never are.

    Raises:
        ValueError: not a hub name, or not to be had: no network, no such model, no permission.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise ValueError(f"model {name!r} is no folder here, and no name of a hub model either (owner/name)")
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns), ignore_patterns=["*/*"]))
    except RepositoryNotFoundError as error:  # also when it may not be seen
        raise ValueError(
            f"the model hub gives no {name!r} ({_first_line(error)}); check the name, and if its owner asks for consent, "
            "give it on the model's page and run `hf auth login`"
        ) from error
    except Exception as error:  # a network fails in too many ways to list, and libraries change them
        raise ValueError(
            f"model {name!r} is no folder here and could not be fetched from the model hub ({_first_line(error)}). Without "
            f"network: where there is one run `hf download {name} --local-dir DIR`, bring DIR here and name it as the model"
        ) from error


def hashes(folder: Path, patterns: Sequence[str]) -> dict[str, str]:
    """Name -> sha256 of the files of ``folder`` that fit a pattern (for weights, the figure that the hub shows)."""
    names = {path.name for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return {name: sha256(folder / name) for name in sorted(names)}


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
