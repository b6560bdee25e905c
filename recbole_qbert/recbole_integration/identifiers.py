"""Load or build the semantic IDs of a RecBole data set."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from recbole_qbert.config.property_files import property_file, read_properties
from recbole_qbert.config.schema import MODEL
from recbole_qbert.data import content_neighbors
from recbole_qbert.data.item_features import STRUCTURE, ItemFeatures
from recbole_qbert.injection.concatenation import Concatenation
from recbole_qbert.pipeline.builder import SemanticIDBuilder
from recbole_qbert.pipeline.catalog import Catalog, stage_settings
from recbole_qbert.pipeline.stages import REALLOCATE
from recbole_qbert.quantization import semantic_ids
from recbole_qbert.quantization.semantic_ids import SemanticIDs
from recbole_qbert.recbole_integration.patches import ConfigValues
from recbole_qbert.utils.distributed import first_before_others, rank


def load_or_build(config: Any, catalog: Catalog) -> tuple[SemanticIDs, dict[str, Any]]:
    """Return the semantic IDs of a catalog, and figures on how they were made.

    The first source that applies is used:

    1. ``semantic_ids: none``: there are no IDs;
    2. the file of the property ``semantic_id_file``;
    3. ``<data_path>/<dataset>.sid``;
    4. stages 1 and 2. They write to ``semantic_id_dir`` and reuse what they have written there before.

    Of several processes the first one builds, and the others load its result.

    Args:
        config: RecBole's configuration.
        catalog: items and training histories.

    Raises:
        ValueError: the IDs do not fit the catalog, or a stage refuses its input.
    """
    if config["semantic_ids"] == "none":
        no_codes = np.empty((len(catalog.items), 0), dtype=np.int16)
        return SemanticIDs(catalog.items, no_codes, (), 1), {"semantic_ids": {"code_sets": []}, "seconds": {}}
    file, beside_data, built = candidate_files(config)
    if file or beside_data.exists():
        path = file or beside_data
        ids = semantic_ids.load(path)
        codes = ids.aligned(catalog.items, str(path))
        health = semantic_ids.health(codes, codes, ids.size, ids.prefixes)
        return ids, {"semantic_ids": {"file": str(path), "code_sets": [{"code_set": "given", **health}]}, "seconds": {}}
    with first_before_others():
        return builder_for(config, catalog, built.parent).build()


def builder_for(config: Any, catalog: Catalog, output: Path) -> SemanticIDBuilder:
    """Return the builder of a configuration; of several processes only the first one rebuilds and shows progress.

    Args:
        config: RecBole's configuration.
        catalog: items and training histories.
        output: folder of everything that is written.
    """
    first = rank() == 0
    return SemanticIDBuilder(
        catalog,
        stage_settings(with_defaults(config)),
        output,
        rebuild=first and bool(config["rebuild"]),
        progress=first and bool(config["show_progress"]),
        collisions=config["collisions"] or REALLOCATE,
    )


def with_defaults(config: Any) -> dict[str, Any]:
    """Return the properties of a model, with those of stages 1 and 2 that it does not have from QBERT4Rec's defaults."""
    return {**read_properties(property_file(f"model/{MODEL}.yaml")), **ConfigValues(config)}


def content_likeness(config: Any, catalog: Catalog) -> sp.csr_matrix | None:
    """Compute how alike the content of items is, by the features of the data set (``data.content_neighbors``).

    Args:
        config: RecBole's configuration, of QBERT4Rec or of another model.
        catalog: items and training histories.

    Returns:
        ``[N + 1, N + 1]`` over RecBole's item ids; ``None`` without features, and for a union of several data sets.
    """
    vectors = None if config["domains"] else content_vectors(config, catalog)
    likeness = None if vectors is None else content_neighbors.nearest(vectors)
    if likeness is None:
        return None
    count = len(catalog.items) + 1
    rows = np.concatenate([[0], likeness.indptr])  # no row and no column at 0, RecBole's padding
    return sp.csr_matrix((likeness.data, likeness.indices + 1, rows), shape=(count, count))


def content_vectors(config: Any, catalog: Catalog) -> np.ndarray | None:
    """Return the standardized features of the items side by side, ``[N, D]`` float32; ``None`` without features.

    Args:
        config: RecBole's configuration, of QBERT4Rec or of another model.
        catalog: items and training histories.
    """
    features = load_features(config, catalog).without(STRUCTURE)  # co-occurrence is evidence of its own
    if not features.vectors:
        return None
    fusion = Concatenation.fit(features.vectors, features.present, stage_settings(with_defaults(config)).injection.dim)
    return fusion(features.vectors, features.present)


def load_features(config: Any, catalog: Catalog, missing: str = "mask") -> ItemFeatures:
    """Return the features of a data set; those of the built-in encoders if it has none.

    Args:
        config: RecBole's configuration, of QBERT4Rec or of another model.
        catalog: items and training histories.
        missing: ``error`` to refuse items without a row of features, ``mask`` to take them for items without features.

    Raises:
        ValueError: the features are invalid.
    """
    settings = stage_settings(with_defaults(config))
    settings = replace(settings, identifiers=replace(settings.identifiers, missing_features=missing))
    with first_before_others():
        return SemanticIDBuilder(catalog, settings, candidate_files(config)[2].parent).features()[0]


def load_modalities(config: Any, catalog: Catalog) -> ItemFeatures:
    """Return the features that the property ``modalities`` names, in its order; ``auto`` is all, text and image first.

    Args:
        config: RecBole's configuration with ``modalities`` and ``missing_features``.
        catalog: items and training histories.

    Raises:
        ValueError: the data set does not have such features, or they are invalid.
    """
    features = load_features(config, catalog, str(config["missing_features"]))
    wanted = list(config["modalities"])
    if wanted == ["auto"]:
        wanted = sorted(features.vectors, key=lambda name: (name != "text", name != "image"))
    if not wanted:
        raise ValueError(
            f"{catalog.dataset} has neither features nor texts or pictures to make them of, and {config['model']} needs some"
        )
    if missing := [name for name in wanted if name not in features.vectors]:
        raise ValueError(
            f"modalities is {wanted}, but {catalog.dataset} has no features of {', '.join(missing)} (it has "
            f"{', '.join(features.vectors) or 'none'}); make {catalog.dataset}.{missing[0]}.npy, or leave it out"
        )
    return replace(
        features,
        vectors={name: features.vectors[name] for name in wanted},
        present={name: features.present[name] for name in wanted},
    )


def existing_file(config: Any) -> Path | None:
    """Return the file with the semantic IDs of a trained model; ``None`` if it uses none, or if the file is gone."""
    if config["semantic_ids"] == "none":
        return None
    return next((path for path in candidate_files(config) if path and path.is_file()), None)


def candidate_files(config: Any) -> tuple[Path | None, Path, Path]:
    """Return the files that may hold the IDs, in the order in which they are tried.

    Returns:
        The file of the property ``semantic_id_file``, the file in the data set's folder, the output of stages 1 and 2.
    """
    name, file = f"{config['dataset']}.sid", config["semantic_id_file"]
    own = [config["model"]] if config["ids"] else []  # a generative model has its own settings of stage 2
    built = config["semantic_id_dir"] or os.path.join(config["checkpoint_dir"], "semantic_ids", *own, config["dataset"])
    return Path(file) if file else None, Path(config["data_path"]) / name, Path(built) / name
