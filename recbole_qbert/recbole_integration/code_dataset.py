"""Data sets whose items have code sets, each a language of a generative model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from recbole_qbert.data.multi_domain import CODE_TABLES
from recbole_qbert.pipeline.catalog import Catalog
from recbole_qbert.quantization import code_sets, semantic_ids
from recbole_qbert.quantization.code_sets import CodeSet
from recbole_qbert.recbole_integration import identifiers
from recbole_qbert.recbole_integration.dataset import HistoryDataset
from recbole_qbert.utils.distributed import first_before_others

log = logging.getLogger(__name__)


class CodeDataset(HistoryDataset):
    """A ``HistoryDataset`` whose items have code sets. ``build`` loads them, or makes them by stage 2.

    Attributes:
        code_sets: codes of all items, without the padding item; set by ``build``.
        identifier_figures: figures on how they were made; set by ``build``.
    """

    code_sets: list[CodeSet]
    identifier_figures: dict[str, Any]

    def complete(self, parts: Sequence[Any]) -> None:
        """Load or make the codes, and give them to the parts of the data set."""
        sets, figures = load_or_make(self.config, self.catalog())
        for part in parts:
            part.code_sets, part.identifier_figures = sets, figures


def load_or_make(config: Any, catalog: Catalog) -> tuple[list[CodeSet], dict[str, Any]]:
    """Return the code sets of a catalog, and figures on how they were made.

    The first source that applies is used; ``ids: trained`` skips all but the last, ``ids: given`` the last:

    1. the ``.sid`` file of the property ``semantic_id_file``;
    2. ``<data_path>/<dataset>.sid``;
    3. ``<data_path>/<dataset>.text_codes.tsv`` and ``<dataset>.image_codes.tsv``;
    4. stage 2 on each modality. It writes to ``semantic_id_dir`` and reuses what it has written there before.

    Args:
        config: RecBole's configuration.
        catalog: items and training histories.

    Raises:
        FileNotFoundError: ``ids`` is ``given``, and none of the files exists.
        ValueError: the codes do not fit the catalog, or stage 2 refuses its input.
    """
    ids, collisions = config["ids"], config["collisions"]
    given = None if ids == "trained" else _given(config, catalog)
    if given is None and ids == "given":
        names = ", ".join(path.name for path in _tables(catalog).values())
        raise FileNotFoundError(
            f"ids is given, but {catalog.folder} holds neither {catalog.dataset}.sid nor {names}; add the codes, name a "
            "file by semantic_id_file, or set ids to trained"
        )
    if given is not None:
        return _resolved(*given, collisions, catalog.items)
    if collisions == "keep":
        raise ValueError(
            "collisions is keep, which is for given codes; set it to reallocate or digit where codes are trained"
        )
    output = identifiers.candidate_files(config)[2]
    with first_before_others():
        built, figures = identifiers.builder_for(config, catalog, output.parent).build()
    return code_sets.split(built, catalog.items, str(output)), figures


def _given(config: Any, catalog: Catalog) -> tuple[list[CodeSet], str] | None:
    """Return code sets that lie in files, and where; ``None`` if there are none."""
    file, beside, _ = identifiers.candidate_files(config)
    path = file or (beside if beside.exists() else None)
    if path is not None:
        return code_sets.split(semantic_ids.load(path), catalog.items, str(path)), str(path)
    tables = {name: path for name, path in _tables(catalog).items() if path.exists()}
    if not tables:
        return None
    sets = [code_sets.read_table(path, name, catalog.items) for name, path in tables.items()]
    missing = int((sets[0].codes < 0).any(1).sum())
    if missing:
        raise ValueError(f"{tables[sets[0].name]} has no codes of {missing} of {len(catalog.items)} items; add them")
    return sets, ", ".join(map(str, tables.values()))


def _tables(catalog: Catalog) -> dict[str, Path]:
    names = zip(code_sets.NAMES, CODE_TABLES, strict=True)
    return {name: catalog.folder / f"{catalog.dataset}{ending}" for name, ending in names}


def _resolved(
    sets: Sequence[CodeSet], source: str, collisions: str, items: Sequence[str]
) -> tuple[list[CodeSet], dict[str, Any]]:
    """Tell items with the same given codes apart by a digit, or leave them, and say so in the log.

    Given codes come without the quantizer, so no item can be moved to the nearest free code.
    """
    resolved, health = [], []
    for code_set in sets:
        shared = code_set.shared()
        final = code_set.with_digit(items) if shared and collisions == "digit" else code_set
        if shared and final is code_set:
            log.warning(
                "%s: %d of %d items share their %s codes; the model cannot tell them apart, and ties count against it",
                source, shared, len(items), code_set.name,
            )  # fmt: skip
        resolved.append(replace(final))
        described = final.codes[(final.codes >= 0).all(1)]
        own = semantic_ids.health(described, described, max(final.sizes), [str(level) for level in range(len(final.sizes))])
        health.append({"code_set": code_set.name, **own, "shared_before": shared})
    return resolved, {"semantic_ids": {"file": source, "code_sets": health}, "seconds": {}}
