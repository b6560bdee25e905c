"""Run stages 1 and 2 in order, each only if its cached output cannot be reused.

The module does not use RecBole. The same catalog, settings and seed give the same files for every caller.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from recbole_qbert.config.schema import QuantizerConfig
from recbole_qbert.data import builtin_encoders, item_features
from recbole_qbert.data.item_features import ItemFeatures
from recbole_qbert.pipeline import stages
from recbole_qbert.pipeline.catalog import Catalog, StageSettings
from recbole_qbert.quantization import semantic_ids, tokenizer
from recbole_qbert.quantization.semantic_ids import SemanticIDs
from recbole_qbert.utils.cached_step import CachedStep
from recbole_qbert.utils.io import digest, file_lock, sha256, write_array
from recbole_qbert.utils.resumable_epochs import Epochs

log = logging.getLogger(__name__)


class SemanticIDBuilder:
    """Build the semantic IDs of a catalog from features, through stage 1 and stage 2.

    Args:
        catalog: items, training histories and the folder of the data.
        settings: settings of all stages.
        output: folder of everything that is written.
        rebuild: run every stage again.
        progress: show progress bars.
        collisions: what happens to items that share an ID (``stages.quantize``).

    Raises:
        ValueError: ``output`` is the data set's own folder.
    """

    def __init__(
        self,
        catalog: Catalog,
        settings: StageSettings,
        output: Path,
        *,
        rebuild: bool = False,
        progress: bool = False,
        collisions: str = stages.REALLOCATE,
    ) -> None:
        require_separate_output(catalog, output)
        settings = replace(settings, quantizer=settings.quantizer.for_catalog(len(catalog.items)))
        self.catalog, self.settings, self.output, self.rebuild = catalog, settings, output, rebuild
        self.progress, self.collisions = progress, collisions

    def build(self) -> tuple[SemanticIDs, dict[str, Any]]:
        """Run the stages that have no reusable output. Of several callers the first one builds, and the others wait.

        Returns:
            The IDs, and figures: ``features``, ``injection`` (absent if no code set needs it), ``semantic_ids``,
            ``seconds``.

        Raises:
            ValueError: the features are invalid, there are more items than IDs, or ``semantic_ids`` is ``none``.
        """
        if self.settings.identifiers.semantic_ids == "none":
            raise ValueError("semantic_ids is none: there are no IDs to build; set it to fused, per_modality or both")
        if self.collisions == stages.REALLOCATE:
            _require_enough_ids(len(self.catalog.items), self.settings.quantizer)  # before stage 1 spends its time
        figures: dict[str, Any] = {"seconds": {}}
        with file_lock(self.output):
            with _timed(figures, "features"):
                features, figures["features"] = self.features()
            if "fused" in self.settings.identifiers.code_sets(tuple(features.vectors)):
                with _timed(figures, "injection"):
                    figures["injection"] = self.inject(features)
            with _timed(figures, "quantization"):
                ids, figures["semantic_ids"] = self.quantize(features)
        return ids, figures

    def features(self) -> tuple[ItemFeatures, dict[str, Any]]:
        """Read the features that take part, aligned to the catalog; encode text and images if the data have none.

        Returns:
            The features and their figures: ``folder`` and ``modalities``.
        """
        folder = self._features_folder()
        features = self._load_features(folder)
        coverage = features.coverage()
        modalities = {
            name: {"shape": list(matrix.shape), "coverage": coverage[name]} for name, matrix in features.vectors.items()
        }
        return features, {"folder": str(folder), "modalities": modalities}

    def inject(self, features: ItemFeatures) -> dict[str, Any]:
        """Run stage 1; write ``X.fused.npy`` ``[N, D]``, the weights and, of a network, ``X.depth.npy`` ``[N]``.

        Returns:
            The figures of the stage.
        """
        config, seed = self.settings.injection, self.settings.seed
        # Without features there is nothing to concatenate: items are described by their co-occurrence alone.
        concatenated = self.settings.identifiers.fusion == "concatenation" and bool(features.vectors)
        histories = not concatenated and stages.needs_histories(features, config)
        inputs = {
            "fusion": "concatenation" if concatenated else "injection",
            "items": digest(self.catalog.items),
            "features": features.inputs,
            "settings": {"dim": config.dim} if concatenated else asdict(config),
            "histories": digest([history.tolist() for history in self.catalog.histories]) if histories else None,
            "seed": None if concatenated else seed,
        }
        fused_file, depth_file, weights_file = (
            self._file(end) for end in ("fused.npy", "depth.npy", "injection.safetensors")
        )

        def run() -> dict[str, Any]:
            epochs = self._epochs("injection.progress", inputs, "stage 1 injection")
            if concatenated:
                fused = stages.concatenate(features, config.dim)
            else:
                fused = stages.fuse(features, self.catalog.histories, config, seed, epochs)
            write_array(fused_file, fused.vectors)
            if fused.depth is None:
                depth_file.unlink(missing_ok=True)  # of an earlier injection
            else:
                write_array(depth_file, fused.depth)
            tokenizer.save_weights(weights_file, fused.weights)
            epochs.forget()
            return fused.report

        outputs = [fused_file, weights_file] if concatenated else [fused_file, depth_file, weights_file]
        return self._cached("injection", inputs, outputs, run, f"stage 1 {inputs['fusion']}")

    def quantize(self, features: ItemFeatures) -> tuple[SemanticIDs, dict[str, Any]]:
        """Run stage 2; write ``X.sid`` and ``X.quantizer.safetensors``; return the IDs and the health of each code set."""
        config, seed = self.settings.quantizer, self.settings.seed
        code_sets = self.settings.identifiers.code_sets(tuple(features.vectors))
        fused_file = self._file("fused.npy") if "fused" in code_sets else None
        inputs = {
            "items": digest(self.catalog.items),
            "features": features.inputs,
            "fused": sha256(fused_file) if fused_file else None,
            "code_sets": code_sets,
            "settings": asdict(config),
            "seed": seed,
        }
        if self.collisions != stages.REALLOCATE:
            inputs["collisions"] = self.collisions
        ids_file, weights_file = self._file("sid"), self._file("quantizer.safetensors")

        def run() -> dict[str, Any]:
            epochs = {
                code_set: self._epochs(f"{code_set}.quantizer.progress", inputs, f"stage 2 {code_set}")
                for code_set in code_sets
            }
            # Copy-on-write: of a large catalog, the pages are the file's and not memory of this process alone.
            fused = np.load(fused_file, mmap_mode="c", allow_pickle=False) if fused_file else None
            quantized = stages.quantize(features, fused, code_sets, config, seed, epochs.__getitem__, self.collisions)
            semantic_ids.require_unique(quantized.ids, str(ids_file))
            tokenizer.save_weights(weights_file, quantized.weights)
            replace(quantized.ids, vocabulary=sha256(weights_file)).save(ids_file)
            for epochs_of_set in epochs.values():  # only now: after a kill in a later set, earlier ones resume at their end
                epochs_of_set.forget()
            return quantized.report

        outputs = [ids_file, self._file("sid.json"), weights_file]
        report = self._cached("sid", inputs, outputs, run, "stage 2 quantization")
        size = config.codes if self.collisions == stages.REALLOCATE else None  # a digit may count further
        return semantic_ids.load(ids_file, size), report

    # ------------------------------------------------------------------------------------------------------ features
    def _features_folder(self) -> Path:
        """Return the folder of the feature files: the data set's own, or the output folder of the built-in encoders."""
        catalog = self.catalog
        name = catalog.dataset
        if (catalog.folder / f"{name}.items.txt").exists() or item_features.available(catalog.folder, name):
            return catalog.folder
        table, pictures = catalog.folder / f"{name}.item", catalog.folder / "images"
        columns: list[tuple[str, ...]] = [()] * len(catalog.items)
        if table.exists():
            fields = self.settings.identifiers.text_fields
            columns = builtin_encoders.read_text_columns(table, catalog.items, fields, catalog.form)
        texts = [" ".join(of_item).strip() for of_item in columns]
        by_column = self.settings.identifiers.text_vectors == "by_column"
        images = builtin_encoders.find_images(pictures, catalog.items)
        width, seed = self.settings.identifiers.builtin_width, self.settings.seed
        inputs = {
            "items": digest(catalog.items),
            "text": digest(texts),
            "image": digest([[(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files] for files in images]),
            "encoders": [builtin_encoders.TEXT_ENCODER, builtin_encoders.IMAGE_ENCODER],
            "width": width,
            "seed": seed,
        } | ({"text_columns": digest(columns)} if by_column else {})
        modalities = [kind for kind, contents in (("text", texts), ("image", images)) if any(contents)]
        outputs = [self._file(end) for end in ("items.txt", "features.json", *(f"{kind}.npy" for kind in modalities))]

        def run() -> dict[str, Any]:
            matrices: dict[str, np.ndarray] = {}
            report: dict[str, dict[str, Any]] = {}
            if any(texts):
                if by_column:
                    matrices["text"] = builtin_encoders.encode_text_columns(columns, width, seed)
                else:
                    matrices["text"] = builtin_encoders.encode_texts(texts, width, seed)
                report["text"] = {"encoder": builtin_encoders.TEXT_ENCODER}
            if any(images):
                matrix, broken = builtin_encoders.encode_images(images, width, seed, progress=self._bar("images"))
                matrices["image"] = matrix
                report["image"] = {"encoder": builtin_encoders.IMAGE_ENCODER, "unreadable": broken}
            for modality in item_features.available(self.output, name):
                if modality not in matrices:  # it is of an earlier build on other inputs
                    self._file(f"{modality}.npy").unlink()
            for modality, matrix in matrices.items():
                report[modality] |= {"shape": list(matrix.shape)}
            item_features.save(self.output, name, catalog.items, matrices, report)
            return report

        seen = " and ".join(modalities) or "nothing, since it has neither text nor images"
        note = f"built-in encoders of {seen} (the data set has no features)"
        self._cached("features", inputs, outputs, run, "features", note)
        return self.output

    def _load_features(self, folder: Path) -> ItemFeatures:
        """Read the features that take part, aligned to the catalog."""
        catalog, settings = self.catalog, self.settings
        available = item_features.available(folder, catalog.dataset)
        if not available and (folder / f"{catalog.dataset}.items.txt").exists() and folder == catalog.folder:
            raise ValueError(
                f"{folder / catalog.dataset}.items.txt lists items but no {catalog.dataset}.<modality>.npy is next to "
                "it; add the feature files or remove the list"
            )
        wanted = tuple(name for name in settings.injection.modalities if name != item_features.STRUCTURE)
        modalities = available if wanted == ("auto",) else wanted
        features = ItemFeatures(catalog.items, {}, {}, {})
        if modalities:
            missing = settings.identifiers.missing_features
            features = item_features.load(folder, catalog.dataset, catalog.items, modalities, missing)
        if item_features.STRUCTURE in settings.injection.modalities:
            features = stages.with_structure(features, catalog.histories, settings.injection.dim, settings.seed)
        empty = {name for name, there in features.present.items() if not there.any()}
        if empty:
            log.warning("no item of %s has features of %s: not used", catalog.dataset, ", ".join(sorted(empty)))
        return replace(
            features,
            vectors={name: value for name, value in features.vectors.items() if name not in empty},
            present={name: value for name, value in features.present.items() if name not in empty},
        )

    # --------------------------------------------------------------------------------------------------------- steps
    def _file(self, end: str) -> Path:
        return self.output / f"{self.catalog.dataset}.{end}"

    def _cached(
        self,
        name: str,
        inputs: dict[str, Any],
        outputs: list[Path],
        run: Callable[[], dict[str, Any]],
        title: str,
        note: str = "",
    ) -> dict[str, Any]:
        """Run a step if its cached output cannot be reused, and log that; return its figures."""
        report, reason = CachedStep(self.output, f"{self.catalog.dataset}.{name}", inputs, outputs).run(run, self.rebuild)
        what = "cached output used" if reason is None else f"run ({reason})"
        log.info("%s: %s%s", title, what, f"; {note}" if note else "")
        return report

    def _epochs(self, end: str, inputs: dict[str, Any], title: str) -> Epochs:
        epochs = Epochs(self._file(end), inputs, self._bar(title))
        if self.rebuild:
            epochs.forget()
        return epochs

    def _bar(self, title: str) -> Callable[[Iterable[Any]], Any]:
        from tqdm import tqdm

        return lambda steps: tqdm(steps, desc=f"{title:<18}", ncols=100, disable=not self.progress, leave=False)


def require_separate_output(catalog: Catalog, output: Path) -> None:
    """Refuse to write into the data set's own folder, because the next run would take the output for data.

    Raises:
        ValueError: ``output`` is that folder.
    """
    if output.resolve() == catalog.folder.resolve():
        raise ValueError(
            f"{output} is the folder of the data set itself, whose features and semantic IDs are used as they are and never "
            "built: let --output (or semantic_id_dir) name another folder"
        )


def _require_enough_ids(items: int, config: QuantizerConfig) -> None:
    if items > config.codes**config.levels:
        raise ValueError(
            f"{items} items need different IDs, but {config.levels} levels of {config.codes} codes make "
            f"{config.codes**config.levels}; raise rq_levels or rq_codes"
        )


@contextmanager
def _timed(figures: dict[str, Any], name: str) -> Iterator[None]:
    """Put the wall-clock seconds of the block into ``figures["seconds"][name]``."""
    started = time.perf_counter()
    yield
    figures["seconds"][name] = time.perf_counter() - started
