"""Build one vocabulary of semantic IDs over several data sets, to pretrain on some and fine-tune on each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_qbert.data.multi_domain import write_union
from recbole_qbert.recbole_integration import experiment
from recbole_qbert.recbole_integration.identifiers import builder_for
from recbole_qbert.recbole_integration.job import Job
from recbole_qbert.utils.distributed import first_before_others, join_torchrun_group


@dataclass(frozen=True)
class SharedVocabulary:
    """Semantic IDs of several data sets, from one quantizer.

    Attributes:
        folder: holds ``<data set>.sid`` for each of them, and ``pretrain.pth`` after pretraining.
        pretraining: the job of pretraining on the sources.
        figures: figures of stages 1 and 2.
    """

    folder: Path
    pretraining: Job
    figures: dict[str, Any]


def build_vocabulary(job: Job, sources: Sequence[str], targets: Sequence[str] = ()) -> SharedVocabulary:
    """Run stages 1 and 2 over the union of data sets, and write the union of the sources to pretrain on.

    Args:
        job: where the data lie, where to write, and the properties. Its own data set is not read.
        sources: names of the data sets to pretrain on.
        targets: names of data sets that take part in the vocabulary but not in pretraining.

    Returns:
        The folder of the vocabulary, and the job of pretraining.

    Raises:
        FileNotFoundError: a data set is missing.
        ValueError: a stage refuses its input.
    """
    everything = _all(sources, targets)
    unions = job.output / "unions"
    union = job.replace(dataset=union_name(everything), data_path=unions)
    form = job.atomic_format(everything[0])
    join_torchrun_group()
    with first_before_others():
        write_union(everything, job.data_path, unions, union.dataset, form)
        config = union.configure()
        with experiment.working_directory(union.folder):
            catalog = experiment.load_catalog(config)
        ids, figures = builder_for(config, catalog, union.folder).build()
        for dataset in everything:
            ids.of_domain(dataset).save(union.folder / f"{dataset}.sid")
        if len(everything) > len(sources):
            write_union(sources, job.data_path, unions, union_name(sources), form)
    properties = {
        **job.properties,
        "semantic_id_file": str(union.folder / f"{union.dataset}.sid"),
        "checkpoint_file": str(union.folder / "pretrain.pth"),
        "domains": list(sources),
        "rebuild": False,
    }
    return SharedVocabulary(union.folder, union.replace(dataset=union_name(sources), properties=properties), figures)


def shared_name(sources: Sequence[str], targets: Sequence[str] = ()) -> str:
    """Return the name of the vocabulary, which is that of its folder."""
    return union_name(_all(sources, targets))


def _all(sources: Sequence[str], targets: Sequence[str]) -> list[str]:
    return [*sources, *(name for name in targets if name not in sources)]


def union_name(datasets: Sequence[str]) -> str:
    """Return the name of the union of data sets."""
    return "+".join(datasets)


def vocabulary_properties(folder: Path, dataset: str) -> dict[str, Any]:
    """Return the properties that make a data set use a shared vocabulary: its IDs and the pretrained weights.

    Raises:
        FileNotFoundError: the vocabulary does not cover the data set.
    """
    folder = folder.resolve()
    ids = folder / f"{dataset}.sid"
    if not ids.exists():
        covered = ", ".join(sorted(path.stem for path in folder.glob("*.sid"))) or "none"
        raise FileNotFoundError(
            f"{ids} is missing: the vocabulary covers {covered}; name {dataset} among --datasets or --targets of pretrain"
        )
    return {"semantic_id_file": str(ids), "pretrained": str(folder / "pretrain.pth")}
