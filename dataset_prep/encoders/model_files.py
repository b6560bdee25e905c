"""Find the files of a published model in a local folder or on the model hub, and identify them by their hashes."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

from recbole_qbert.utils.io import sha256


def require_installed(*modules: str) -> None:
    """Check that the libraries of the encoders are installed.

    Raises:
        ValueError: a library is not installed.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"{', '.join(missing)} not installed; install the encoders: pip install 'recbole-qbert[encoders]' (in a "
            "checkout: pip install -c constraints.txt -e '.[encoders]')"
        )


def hub_folder(name: str, patterns: Sequence[str]) -> Path:
    """Return the folder with a hub model's files; they are downloaded if the hub's cache does not have them.

    Args:
        name: ``owner/name``.
        patterns: files to download; never those of subfolders.

    Raises:
        ValueError: the name is no hub name, or the model cannot be fetched: no network, no such model, no permission.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise ValueError(f"model {name!r} is neither a folder nor the name of a hub model; write owner/name")
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns), ignore_patterns=["*/*"]))
    except RepositoryNotFoundError as error:  # also raised without permission
        raise ValueError(
            f"the model hub has no {name!r}, or denies access ({_first_line(error)}); check the name; if the model "
            "requires consent, "
            "give it on its page and run `hf auth login`"
        ) from error
    except Exception as error:  # networks fail with too many kinds of errors to list, and libraries change them
        raise ValueError(
            f"model {name!r} is not a folder, and could not be fetched from the model hub ({_first_line(error)}); without a "
            f"network, run `hf download {name} --local-dir DIR` elsewhere, copy DIR here and give it as the model"
        ) from error


def hashes(folder: Path, patterns: Sequence[str]) -> dict[str, str]:
    """Return name -> sha256 of the files of ``folder`` that match a pattern (for weights, the hash that the hub shows)."""
    names = {path.name for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return {name: sha256(folder / name) for name in sorted(names)}


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
