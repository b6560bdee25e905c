"""The one cache of the pipeline: a step runs again only if its inputs or its outputs changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from recbole_qbert.utils.io import digest, sha256, write_json

DIGEST = "manifest_sha256"


def read_manifest(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Read the inputs of a step, and the SHA-256 of each file that it wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or is no manifest.
    """
    manifest = _read(path)
    return manifest["inputs"], manifest["outputs"]


def _read(path: Path) -> dict[str, Any]:
    """Read a manifest: ``inputs``, ``outputs`` and ``report``, and check it by its digest if it has one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # or not UTF-8
        raise ValueError(f"{path} is not JSON") from error
    manifest = content if isinstance(content, dict) else {}
    expected = manifest.pop(DIGEST, None)  # none: before version 0.2
    if expected is not None and expected != digest(manifest):
        raise ValueError(f"{path} is not what was written")
    if "made_from" in manifest:  # before version 0.2
        manifest["inputs"] = manifest.pop("made_from")
    manifest.setdefault("report", {})
    if not all(isinstance(manifest.get(key), dict) for key in ("inputs", "outputs", "report")):
        raise ValueError(f"{path} is no manifest of a step")
    return manifest


def require_outputs(manifest: Path, files: Iterable[Path], way_out: str) -> None:
    """Refuse files that are not those that a step wrote.

    Args:
        manifest: manifest of the step.
        files: files that the step wrote.
        way_out: what the user can do, for the error.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is not what was written; names it.
    """
    outputs = read_manifest(manifest)[1]
    for file in files:
        if outputs.get(file.name) != sha256(file):
            raise ValueError(f"{file} is not the file that {manifest.name} beside it describes; {way_out}")


class CachedStep:
    """A step whose output files are reused while its inputs are unchanged.

    The manifest ``<name>.manifest.json`` holds the inputs (settings, seed, hashes of files) and the hashes of the output
    files. The output is reused while both still match.

    Args:
        folder: folder of the manifest.
        name: stem of the manifest's name.
        inputs: JSON-able description of everything that the output depends on.
        outputs: files that the step writes.
    """

    def __init__(self, folder: Path, name: str, inputs: Mapping[str, Any], outputs: list[Path]) -> None:
        self.manifest = folder / f"{name}.manifest.json"
        self.inputs = json.loads(json.dumps(inputs, sort_keys=True, default=str))
        self.outputs = outputs

    def invalidation_reason(self) -> str | None:
        """Return why the step has to run, or ``None`` if its output can be reused."""
        if not self.manifest.exists():
            return "not built yet"
        try:
            before, outputs = read_manifest(self.manifest)
        except ValueError as error:
            return str(error)
        changed = [key for key in sorted({*before, *self.inputs}) if before.get(key) != self.inputs.get(key)]
        if changed:
            return f"{', '.join(changed)} changed"
        for path in self.outputs:
            if not path.exists():
                return f"{path.name} is missing"
            if outputs.get(path.name) != sha256(path):
                return f"{path.name} is not what was written"
        return None

    def report(self) -> dict[str, Any]:
        """Return the figures that are stored with the output."""
        report: dict[str, Any] = _read(self.manifest)["report"]
        return report

    def run(self, build: Callable[[], dict[str, Any]], rebuild: bool = False) -> tuple[dict[str, Any], str | None]:
        """Run ``build`` unless its output can be reused.

        Args:
            build: function that writes the outputs and returns the figures to store.
            rebuild: run it in any case.

        Returns:
            ``(figures, reason)``; the reason is ``None`` if the cached output was used.
        """
        reason = "rebuild was asked for" if rebuild else self.invalidation_reason()
        if reason is None:
            return self.report(), None
        # The old manifest is removed first, so that after an interruption the step counts as not built.
        self.manifest.unlink(missing_ok=True)
        report = build()
        written = {path.name: sha256(path) for path in self.outputs}
        content = {"inputs": self.inputs, "outputs": written, "report": report}
        write_json(self.manifest, content | {DIGEST: digest(json.loads(json.dumps(content)))})
        return report, reason
