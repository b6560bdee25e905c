"""Stages 1 and 2 in order: features -> fused vectors -> semantic IDs; each kept with a manifest and reused.

Knows nothing of RecBole. Whatever the caller, the same catalog, settings and seed give the same files.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recbole_qbert.config.schema import IdentifierConfig, InjectionConfig, QuantizerConfig
from recbole_qbert.data import builtin_encoders
from recbole_qbert.data import item_features as features
from recbole_qbert.data.item_features import ItemFeatures
from recbole_qbert.injection import structural_vectors
from recbole_qbert.injection import training as injection_training
from recbole_qbert.quantization import collision_resolution, rqvae, semantic_ids, tokenizer
from recbole_qbert.quantization.semantic_ids import SemanticIDs
from recbole_qbert.utils.cached_step import CachedStep
from recbole_qbert.utils.io import digest, folder_lock, sha256, write_array
from recbole_qbert.utils.resumable_epochs import Epochs

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Catalog:
    """What stages 1 and 2 need to know of a data set.

    Attributes:
        dataset: its name, which its files start with.
        folder: where its files lie.
        items: ``N`` tokens of the items to rank.
        histories: training part of each user's history as rows of ``items``; nothing of validation or test.
    """

    dataset: str
    folder: Path
    items: tuple[str, ...]
    histories: Sequence[np.ndarray]


@dataclass(frozen=True)
class StageSettings:
    """Settings of everything before the sequence model."""

    identifiers: IdentifierConfig
    injection: InjectionConfig
    quantizer: QuantizerConfig
    seed: int


class Progress:
    """Progress bars of the stages, or none; ``show`` false for silence."""

    def __init__(self, show: bool) -> None:
        self.show = show

    def __call__(self, title: str) -> Callable[[Iterable[Any]], Any]:
        from tqdm import tqdm

        return lambda steps: tqdm(steps, desc=f"{title:<18}", ncols=100, disable=not self.show, leave=False)


class Builder:
    """The stages before the sequence model, each run where its kept output does not serve.

    Args:
        catalog: items, training histories and where the data lie.
        settings: of all stages.
        output: folder for everything written.
        rebuild: run every stage again.
        progress: show progress bars.

    Raises:
        ValueError: ``output`` is the data set's own folder.
    """

    def __init__(
        self, catalog: Catalog, settings: StageSettings, output: Path, *, rebuild: bool = False, progress: bool = False
    ) -> None:
        require_apart(catalog, output)
        self.catalog, self.settings, self.output, self.rebuild = catalog, settings, output, rebuild
        self.bars = Progress(progress)

    def build(self) -> tuple[SemanticIDs, dict[str, Any]]:
        """Semantic IDs, by way of whatever stages are not built yet. Of several processes the first builds, the others wait.

        Returns:
            The IDs, and figures: ``features``, ``injection`` (absent when no code set needs it), ``semantic_ids``,
            ``seconds``.

        Raises:
            ValueError: bad features, more items than IDs, or no IDs wanted.
        """
        if self.settings.identifiers.semantic_ids == "none":
            raise ValueError("semantic_ids is none: there are no IDs to build; set it to fused, per_modality or both")
        _require_room(len(self.catalog.items), self.settings.quantizer)  # before stage 1 spends its time
        figures: dict[str, Any] = {"seconds": {}}
        with folder_lock(self.output):
            with _timed(figures, "features"):
                item_features, figures["features"] = self.features()
            if "fused" in self.settings.identifiers.code_sets(tuple(item_features.vectors)):
                with _timed(figures, "injection"):
                    figures["injection"] = self.inject(item_features)
            with _timed(figures, "quantization"):
                ids, figures["semantic_ids"] = self.quantize(item_features)
        return ids, figures

    def features(self) -> tuple[ItemFeatures, dict[str, Any]]:
        """The features that take part, aligned to the catalog, and their figures; made first where there are none."""
        folder = self._features_folder()
        loaded = self._load_features(folder)
        coverage = loaded.coverage()
        modalities = {
            name: {"shape": list(matrix.shape), "coverage": coverage[name]} for name, matrix in loaded.vectors.items()
        }
        return loaded, {"folder": str(folder), "modalities": modalities}

    def _features_folder(self) -> Path:
        """Folder that holds the feature files: the data set's own, or the built-in encoders' over its text and images."""
        catalog, settings, output = self.catalog, self.settings, self.output
        name = catalog.dataset
        if (catalog.folder / f"{name}.items.txt").exists() or features.available(catalog.folder, name):
            return catalog.folder
        table, pictures = catalog.folder / f"{name}.item", catalog.folder / "images"
        texts = builtin_encoders.read_texts(table, catalog.items) if table.exists() else [""] * len(catalog.items)
        images = builtin_encoders.find_images(pictures, catalog.items)
        width = settings.identifiers.builtin_width
        inputs = {
            "items": digest(catalog.items),
            "text": digest(texts),
            "image": digest([[(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files] for files in images]),
            "encoders": [builtin_encoders.TEXT_ENCODER, builtin_encoders.IMAGE_ENCODER],
            "width": width,
            "seed": settings.seed,
        }
        matrices = [kind for kind, given in (("text", texts), ("image", images)) if any(given)]
        outputs = [output / f"{name}.{end}" for end in ("items.txt", "features.json", *(f"{kind}.npy" for kind in matrices))]
        stage = CachedStep(output, f"{name}.features", inputs, outputs)

        def encode() -> dict[str, Any]:
            matrices: dict[str, np.ndarray] = {}
            report: dict[str, dict[str, Any]] = {}
            if any(texts):
                matrices["text"] = builtin_encoders.encode_texts(texts, width, settings.seed)
                report["text"] = {"encoder": builtin_encoders.TEXT_ENCODER}
            if any(images):
                matrix, broken = builtin_encoders.encode_images(images, width, settings.seed, progress=self.bars("images"))
                matrices["image"] = matrix
                report["image"] = {"encoder": builtin_encoders.IMAGE_ENCODER, "unreadable": broken}
            for old in features.available(output, name):  # of an earlier build with other inputs
                if old not in matrices:
                    (output / f"{name}.{old}.npy").unlink()
            for modality, matrix in matrices.items():
                report[modality] |= {"shape": list(matrix.shape)}
            features.save(output, name, catalog.items, matrices, report)
            return report

        _, reason = stage.run(encode, self.rebuild)
        _say("features", reason, "built-in encoders over text and images (no features came with the data)")
        return output

    def _load_features(self, folder: Path) -> ItemFeatures:
        """The features that take part, aligned to the catalog."""
        catalog, settings = self.catalog, self.settings
        found = features.available(folder, catalog.dataset)
        if not found and (folder / f"{catalog.dataset}.items.txt").exists() and folder == catalog.folder:
            raise ValueError(
                f"{folder / catalog.dataset}.items.txt lists items but no {catalog.dataset}.<modality>.npy is beside "
                "it; add the feature files or remove the list"
            )
        wanted = settings.injection.modalities
        modalities = found if wanted == ("auto",) else wanted
        if not modalities:
            return ItemFeatures(catalog.items, {}, {}, {})
        loaded = features.load(folder, catalog.dataset, catalog.items, modalities, settings.identifiers.missing_features)
        empty = {name for name, there in loaded.present.items() if not there.any()}
        if empty:
            log.warning("no item of %s has features of %s: left out", catalog.dataset, ", ".join(sorted(empty)))
        return replace(
            loaded,
            vectors={name: value for name, value in loaded.vectors.items() if name not in empty},
            present={name: value for name, value in loaded.present.items() if name not in empty},
        )

    def inject(self, item_features: ItemFeatures) -> dict[str, Any]:
        """Stage 1: writes ``X.fused.npy`` ``[N, D]`` and ``X.depth.npy`` ``[N]``; returns the figures of the run."""
        catalog, settings, output = self.catalog, self.settings, self.output
        config, name = settings.injection, catalog.dataset
        structural = config.query == "structural" or not item_features.vectors
        inputs = {
            "items": digest(catalog.items),
            "features": item_features.inputs,
            "settings": asdict(config),
            "histories": _histories_digest(catalog) if structural else None,
            "seed": settings.seed,
        }
        paths = [output / f"{name}.{end}" for end in ("fused.npy", "depth.npy", "injection.safetensors")]

        def run() -> dict[str, Any]:
            queries = None
            if structural:
                queries = structural_vectors.vectors(catalog.histories, len(catalog.items), config.dim, settings.seed)
                queries /= max(float(np.sqrt((queries**2).sum(1).mean())), 1e-6)
            chosen = InjectionConfig(**{**asdict(config), "modalities": tuple(item_features.vectors)})
            epochs = Epochs(output / f"{name}.injection.progress", inputs, self.bars("stage 1 injection"))
            if self.rebuild:
                epochs.forget()
            network, fused, depth, report = injection_training.fit(
                item_features.vectors, item_features.present, chosen, settings.seed, queries, epochs
            )
            write_array(paths[0], fused.astype(np.float32))
            write_array(paths[1], depth.astype(np.int16))
            tokenizer.save_weights(paths[2], tokenizer.injection_weights(network))
            epochs.forget()
            return asdict(report)

        report, reason = CachedStep(output, f"{name}.injection", inputs, paths).run(run, self.rebuild)
        _say("stage 1 injection", reason)
        return report

    def quantize(self, item_features: ItemFeatures) -> tuple[SemanticIDs, dict[str, Any]]:
        """Stage 2: writes ``X.sid`` and ``X.quantizer.safetensors``; returns the IDs and the health of each code set."""
        catalog, settings, output = self.catalog, self.settings, self.output
        name, config = catalog.dataset, settings.quantizer
        fused = output / f"{name}.fused.npy"
        sets = settings.identifiers.code_sets(tuple(item_features.vectors))
        inputs = {
            "items": digest(catalog.items),
            "features": item_features.inputs,
            "fused": sha256(fused) if "fused" in sets else None,
            "code_sets": sets,
            "settings": asdict(config),
            "seed": settings.seed,
        }
        path, weights = output / f"{name}.sid", output / f"{name}.quantizer.safetensors"

        def run() -> dict[str, Any]:
            codes, report = [], []
            prefixes: list[str] = []
            tensors: dict[str, torch.Tensor] = {}
            kept = []
            for number, code_set in enumerate(sets):
                vectors, real = _vectors_of(code_set, item_features, fused)
                letters = semantic_ids.prefixes_of(config.levels, number)
                progress = output / f"{name}.{code_set}.quantizer.progress"
                kept.append(Epochs(progress, inputs, self.bars(f"stage 2 {code_set}")))
                if self.rebuild:
                    kept[-1].forget()
                present = [catalog.items[row] for row in np.flatnonzero(real)]
                final, health, quantizing = _quantize_set(vectors[real], present, letters, settings, kept[-1])
                whole_set = np.full((len(catalog.items), config.levels), -1, dtype=np.int16)
                whole_set[real] = final
                codes.append(whole_set)
                prefixes += letters
                tensors |= {f"{code_set}.{key}": value for key, value in quantizing.items()}
                report.append({"code_set": code_set, **health})
            tokenizer.save_weights(weights, tensors)
            ids = SemanticIDs(catalog.items, np.concatenate(codes, 1), tuple(prefixes), config.codes, sha256(weights))
            semantic_ids.require_unique(ids, str(path))
            ids.save(path)
            for epochs in kept:  # not before: a kill in a later set finds the earlier ones nearly done
                epochs.forget()
            return {"code_sets": report}

        outputs = [path, path.with_name(f"{path.name}.json"), weights]
        report, reason = CachedStep(output, f"{name}.sid", inputs, outputs).run(run, self.rebuild)
        _say("stage 2 quantization", reason)
        return semantic_ids.load(path, config.codes), report


def require_apart(catalog: Catalog, output: Path) -> None:
    """Refuse to write into the data set's own folder: the next run would take it for what came with the data.

    Raises:
        ValueError: it is that folder.
    """
    if output.resolve() == catalog.folder.resolve():
        raise ValueError(
            f"{output} is the folder of the data set itself, where features and semantic IDs are taken as given and never "
            "made anew: let --output (or semantic_id_dir) name another one"
        )


def _quantize_set(
    vectors: np.ndarray, items: Sequence[str], prefixes: tuple[str, ...], settings: StageSettings, epochs: Epochs
) -> tuple[np.ndarray, dict[str, Any], dict[str, torch.Tensor]]:
    """One code set: train, encode, reallocate; ``(codes, health, weights)``."""
    config = settings.quantizer
    # Mean 0 and mean squared length 1: the learning rate and beta then mean the same for every encoder.
    mean = vectors.mean(0)
    scale = max(float(np.sqrt(((vectors - mean) ** 2).sum(1).mean())), 1e-6)
    vectors = (vectors - mean) / scale
    model, report = rqvae.fit(torch.from_numpy(vectors), config, settings.seed, epochs)
    before, latents = model.encode(torch.from_numpy(vectors))
    final = collision_resolution.reallocate(before.numpy(), latents.numpy(), model.codebooks.detach().numpy(), items)
    health = semantic_ids.health(before.numpy(), final, config.codes, prefixes)
    health["reconstruction_error"] = report.reconstruction[-1] if report.reconstruction else None
    health["reseeded_codes"] = sum(report.reseeded)
    weights = {"mean": torch.from_numpy(mean), "scale": torch.tensor(scale), **model.state_dict()}
    return final.astype(np.int16), health, weights


def _require_room(items: int, config: QuantizerConfig) -> None:
    if items > config.codes**config.levels:
        raise ValueError(
            f"{items} items need different IDs, but {config.levels} levels of {config.codes} codes make "
            f"{config.codes**config.levels}; raise rq_levels or rq_codes"
        )


def _vectors_of(code_set: str, item_features: ItemFeatures, fused: Path) -> tuple[np.ndarray, np.ndarray]:
    """``([N, D] float32, [N] bool)``: the vectors to quantize and which items have one; several vectors are averaged."""
    if code_set == "fused":
        vectors = np.load(fused, allow_pickle=False)
        return vectors, np.ones(len(vectors), dtype=bool)
    vectors, present = item_features.vectors[code_set], item_features.present[code_set]
    real = present.any(1)
    mean = tokenizer.one_vector(vectors, present)
    if code_set == next(iter(item_features.vectors)):
        # An item without any modality still needs an ID: it stands where the average item stands.
        nothing = ~np.any([there.any(1) for there in item_features.present.values()], axis=0)
        mean[nothing] = mean[real].mean(0) if real.any() else 0.0
        real = real | nothing
    return mean, real


def _histories_digest(catalog: Catalog) -> str:
    return digest([h.tolist() for h in catalog.histories])


def _say(stage: str, reason: str | None, note: str = "") -> None:
    log.info("%s: %s%s", stage, "kept output used" if reason is None else f"run ({reason})", f"; {note}" if note else "")


class _timed:
    """Wall-clock seconds of a block, into ``figures["seconds"][name]``."""

    def __init__(self, figures: dict[str, Any], name: str) -> None:
        self.seconds: dict[str, float] = figures["seconds"]
        self.name = name

    def __enter__(self) -> None:
        self.started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.name] = time.perf_counter() - self.started


def stage_settings(values: Mapping[str, Any]) -> StageSettings:
    """Read the settings of stages 1 and 2 from property keys (prefixes ``injection_`` and ``rq_``)."""
    from recbole_qbert.config.schema import read

    return StageSettings(
        identifiers=read(IdentifierConfig, values),
        injection=read(InjectionConfig, values, prefix="injection_"),
        quantizer=read(QuantizerConfig, values, prefix="rq_"),
        seed=int(values["seed"]),
    )
