"""Files of tensors and plain values (``torch.save``) that carry a digest of their content."""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from recbole_qbert.utils.atomic import atomic_write

log = logging.getLogger(__name__)

DIGEST = "sha256"
DEEPEST = 64  # levels of nesting; ours have fewer than ten


def save_tensors(state: Mapping[str, Any], path: Path) -> None:
    """Write tensors and plain values with their digest, atomically.

    The same state gives the same bytes whatever the name of the file. ``torch.save`` to a path would put the file's name
    into the archive, and the name of a temporary file holds a process id.
    """
    content = {key: value for key, value in state.items() if key != DIGEST}
    with atomic_write(path) as temporary, open(temporary, "wb") as handle:
        torch.save({**content, DIGEST: content_digest(content)}, handle)


def load_tensors(path: str | os.PathLike[str], trusted: bool = False) -> dict[str, Any]:
    """Read a file of ``save_tensors`` or ``torch.save`` onto the CPU, and check it by its digest.

    A file without a digest was written by an earlier version or by other software. It is checked by the checksums of its
    zip archive, and that is logged.

    Args:
        path: the file.
        trusted: whether objects that are neither tensors nor plain values are unpickled.

    Returns:
        The content, without the digest.

    Raises:
        pickle.UnpicklingError: the file holds other objects, and ``trusted`` is false.
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds no dictionary.
    """
    try:
        with warnings.catch_warnings():  # of torch, about files that are refused here anyway
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            state = torch.load(path, map_location="cpu", weights_only=not trusted)
    except (FileNotFoundError, IsADirectoryError, PermissionError, MemoryError):
        raise
    except Exception as error:  # torch's reader of pickles fails in many ways on bytes that are no pickle
        _check_archive(path)
        if isinstance(error, pickle.UnpicklingError):
            raise
        raise ValueError(f"{os.fspath(path)} is damaged or no checkpoint: {error}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{os.fspath(path)} is no checkpoint: it holds a {type(state).__name__}, not a dict")
    expected = state.pop(DIGEST, None)
    actual = content_digest(state, os.fspath(path))
    if expected is None:
        _check_archive(path)
        log.info("%s holds no digest of its content; it was written by an earlier version or by other software", path)
    elif expected != actual:
        raise ValueError(
            f"{os.fspath(path)} is damaged: its content is not what was written ({DIGEST} is {str(expected)[:12]}, and "
            f"{actual[:12]} of the content); copy it again from where it is whole, or make it again"
        )
    return state


def content_digest(value: Any, source: str = "the state") -> str:
    """Compute the hex SHA-256 digest of tensors and plain values, however they are nested.

    Args:
        value: the content. Of other objects only the type counts.
        source: name of the content in an error.

    Raises:
        ValueError: the content is nested too deeply.
    """
    sha = hashlib.sha256()
    _add(value, sha.update, source, DEEPEST)
    return sha.hexdigest()


def _add(value: Any, update: Callable[[Any], None], source: str, depth: int) -> None:
    """Add a value to a digest: its type, its size, and its content."""
    if depth < 0:
        raise ValueError(f"{source} is no checkpoint: its values are nested more than {DEEPEST} levels deep")
    kind = "dict" if isinstance(value, dict) else "tensor" if isinstance(value, torch.Tensor) else type(value).__name__
    if isinstance(value, torch.Tensor):
        update(f"{kind} {value.dtype} {tuple(value.shape)} {value.layout}".encode())
        for part in _dense_parts(value.detach()):
            update(part.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, dict):
        update(f"{kind} {len(value)} ".encode())
        for key, item in value.items():
            _add(key, update, source, depth - 1)
            _add(item, update, source, depth - 1)
    elif isinstance(value, (list, tuple)):
        update(f"{kind} {len(value)} ".encode())
        for item in value:
            _add(item, update, source, depth - 1)
    elif isinstance(value, (set, frozenset)):
        update(f"{kind} {sorted(content_digest(item, source) for item in value)}".encode())
    else:
        plain = isinstance(value, (bool, int, float, complex, str, bytes, torch.dtype, torch.device)) or value is None
        text = repr(value) if plain else ""
        update(f"{kind} {len(text)} {text}".encode(errors="surrogatepass"))


def _dense_parts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the strided tensors that a tensor consists of."""
    if tensor.layout == torch.sparse_coo:
        yield from (tensor._indices(), tensor._values())
    elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        yield from (tensor.crow_indices(), tensor.col_indices(), tensor.values())
    elif tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        yield from (tensor.ccol_indices(), tensor.row_indices(), tensor.values())
    else:
        yield tensor.int_repr() if tensor.is_quantized else tensor.resolve_conj().resolve_neg()


def _check_archive(path: str | os.PathLike[str]) -> None:
    """Check the checksums of a file if it is a zip archive, as ``torch.save`` writes it; torch does not read them.

    Raises:
        ValueError: the archive is damaged.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except Exception as error:  # zlib, struct and zipfile each have their own
        raise ValueError(f"{os.fspath(path)} is damaged: {error}") from error
    if broken is not None:
        raise ValueError(f"{os.fspath(path)} is damaged: its part {broken} is not what was written")


def load_weights(module: torch.nn.Module, weights: Any, source: str) -> None:
    """Set the weights of a module to those of a file.

    Args:
        module: the module.
        weights: name -> tensor.
        source: name of the file in an error.

    Raises:
        ValueError: a name is missing or unknown, or a tensor has another shape or type, or holds NaN or infinity; names the
            file and the tensor.
    """
    if not isinstance(weights, Mapping):
        raise ValueError(f"{source} holds no weights: its state_dict is a {type(weights).__name__}")
    own, learned = module.state_dict(), dict(module.named_parameters())
    for name, value in weights.items():
        if not isinstance(own.get(name), torch.Tensor):  # torch refuses it, or the module gives it another name
            continue
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{source}: {name} is a {type(value).__name__}, not a tensor")
        exact = value.dtype == own[name].dtype
        if not exact and not (_is_integer(value) and _is_integer(own[name])):
            raise ValueError(f"{source} does not fit the model: {name} is {value.dtype} there and {own[name].dtype} here")
        require_numbers(name, value, source, finite=name in learned)
    try:
        module.load_state_dict(weights)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{source} does not fit the model: {' '.join(str(error).split())}") from error


def _is_integer(tensor: torch.Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def require_numbers(name: str, value: torch.Tensor, source: str, finite: bool = False) -> None:
    """Refuse a tensor with NaN.

    Args:
        name: name of the tensor, for the error.
        value: the tensor.
        source: name of the file, for the error.
        finite: refuse infinity, too.

    Raises:
        ValueError: names the file and the tensor.
    """
    if not value.is_floating_point() or value.layout != torch.strided:
        return
    bad = ~value.isfinite() if finite else value.isnan()
    if bool(bad.any()):
        what = "NaN or infinity" if finite else "NaN"
        raise ValueError(f"{source}: {name} holds {what}; the training that wrote it failed, or the file is damaged")
