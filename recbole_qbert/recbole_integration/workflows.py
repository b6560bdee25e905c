"""Run whole workflows: stages 1 and 2, pretraining, fine-tuning, and all in order. The command line calls these functions.

They return figures as plain values. They print only progress bars, and only on a terminal.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from recbole.config import Config
from recbole.utils.argument_list import dataset_arguments

from recbole_qbert.config.property_files import property_file, read_properties
from recbole_qbert.pipeline.builder import SemanticIDBuilder
from recbole_qbert.recbole_integration import experiment
from recbole_qbert.recbole_integration.identifiers import builder_for
from recbole_qbert.recbole_integration.job import Job
from recbole_qbert.recbole_integration.shared_vocabulary import build_vocabulary, shared_name, vocabulary_properties
from recbole_qbert.utils.atomic import run_lock

log = logging.getLogger(__name__)
Figures = dict[str, Any]
PathLike = str | os.PathLike[str]
TITLES = {"pretrain": "stage 3 pretrain", "finetune": "stage 3 fine-tune"}
#: Properties that a baseline takes from the QBERT4Rec run: split, metrics, early stopping, seed.
SHARED_WITH_BASELINES = (
    "MAX_ITEM_LIST_LENGTH", "eval_args", "metrics", "topk", "valid_metric", "stopping_step", "seed", "eval_batch_size",
)  # fmt: skip


def encode_features(
    dataset: str,
    data_path: PathLike,
    output: PathLike = "runs",
    properties: Mapping[str, Any] | None = None,
    config_files: Sequence[PathLike] = (),
) -> Figures:
    """Load the features of a data set; if it has none, encode its text and images with the built-in encoders.

    Args:
        dataset: name of the data set.
        data_path: folder that holds the data set's folder.
        output: folder of everything that is written.
        properties: properties of QBERT4Rec or RecBole.
        config_files: property files.

    Returns:
        Figures: ``features``.

    Raises:
        FileNotFoundError: the data set or a property file is missing.
        ValueError: a setting, the data or the features are refused.
    """
    job = Job.of(dataset, data_path, output, properties, config_files)
    with job.locked():
        _, figures = _builder(job).features()
    return {"dataset": dataset, "features": figures}


def inject(
    dataset: str,
    data_path: PathLike,
    output: PathLike = "runs",
    properties: Mapping[str, Any] | None = None,
    config_files: Sequence[PathLike] = (),
) -> Figures:
    """Run stage 1: fuse the modalities of each item into one vector.

    Args:
        dataset: name of the data set.
        data_path: folder that holds the data set's folder.
        output: folder of everything that is written.
        properties: properties of QBERT4Rec or RecBole.
        config_files: property files.

    Returns:
        Figures: ``features`` and ``injection``.

    Raises:
        FileNotFoundError: the data set or a property file is missing.
        ValueError: a setting, the data or the features are refused.
    """
    job = Job.of(dataset, data_path, output, properties, config_files)
    with job.locked():
        builder = _builder(job)
        features, figures = builder.features()
        return {"dataset": dataset, "features": figures, "injection": builder.inject(features)}


def build_semantic_ids(
    dataset: str,
    data_path: PathLike,
    output: PathLike = "runs",
    properties: Mapping[str, Any] | None = None,
    config_files: Sequence[PathLike] = (),
) -> Figures:
    """Run stages 1 and 2: write ``<output>/<dataset>/<dataset>.sid``.

    Args:
        dataset: name of the data set.
        data_path: folder that holds the data set's folder.
        output: folder of everything that is written.
        properties: properties of QBERT4Rec or RecBole.
        config_files: property files.

    Returns:
        Figures: ``features``, ``injection``, ``semantic_ids``, ``seconds``, and ``file``, the ``.sid`` file.

    Raises:
        FileNotFoundError: the data set or a property file is missing.
        ValueError: a setting, the data or the features are refused.
    """
    job = Job.of(dataset, data_path, output, properties, config_files)
    with job.locked():
        _, figures = _builder(job).build()
    return {"dataset": dataset, **figures, "file": str(job.folder / f"{dataset}.sid")}


def pretrain(
    dataset: str | Sequence[str],
    data_path: PathLike,
    output: PathLike = "runs",
    properties: Mapping[str, Any] | None = None,
    config_files: Sequence[PathLike] = (),
    targets: Sequence[str] = (),
) -> Figures:
    """Run the first half of stage 3: multi-mask pretraining on one data set, or on several with a shared vocabulary.

    Args:
        dataset: name of the data set, or names of several.
        data_path: folder that holds the data sets' folders.
        output: folder of everything that is written.
        properties: properties of QBERT4Rec or RecBole.
        config_files: property files.
        targets: with several data sets, further ones that take part in the vocabulary, to fine-tune on later.

    Returns:
        Figures of the stages, ``valid``, ``checkpoints`` and, for several data sets, ``vocabulary``, its folder.

    Raises:
        FileNotFoundError: the data set or a property file is missing.
        ValueError: a setting, the data or the features are refused.
    """
    figures: Figures = {"seconds": {}}
    name = dataset if isinstance(dataset, str) else shared_name(dataset, targets)
    job = Job.of(name, data_path, output, properties, config_files)
    with job.locked():
        if not isinstance(dataset, str):
            vocabulary = build_vocabulary(job, dataset, targets)
            job, figures["vocabulary"] = vocabulary.pretraining, str(vocabulary.folder)
            figures |= vocabulary.figures
        figures["dataset"] = job.dataset
        run = _train_stage(job, "pretrain", figures)
    return figures | {"seed": run.config["seed"], "valid": run.valid}


def finetune(
    dataset: str,
    data_path: PathLike,
    output: PathLike = "runs",
    properties: Mapping[str, Any] | None = None,
    config_files: Sequence[PathLike] = (),
    vocabulary: PathLike | None = None,
    baselines: Sequence[str] = (),
) -> Figures:
    """Run the second half of stage 3, fine-tuning, and test the model.

    Args:
        dataset: name of the data set.
        data_path: folder that holds the data set's folder.
        output: folder of everything that is written.
        properties: properties of QBERT4Rec or RecBole; ``pretrained`` names a checkpoint to start from.
        config_files: property files.
        vocabulary: folder that ``pretrain`` of several data sets wrote; its IDs and weights are used.
        baselines: RecBole models to train on the same split.

    Returns:
        Figures of the stages, ``valid``, ``test``, ``test_with_prior``, ``baselines`` and ``checkpoints``.

    Raises:
        FileNotFoundError: the data set or a property file is missing.
        ValueError: a setting, the data or the features are refused.
    """
    job = Job.of(dataset, data_path, output, properties, config_files)
    if vocabulary is not None:
        job = job.replace(properties=vocabulary_properties(Path(vocabulary), dataset) | dict(job.properties))
    with job.locked():
        return _finetune(job, baselines, {"dataset": dataset, "seconds": {}})


def train(
    dataset: str,
    data_path: PathLike,
    output: PathLike = "runs",
    properties: Mapping[str, Any] | None = None,
    config_files: Sequence[PathLike] = (),
    baselines: Sequence[str] = (),
) -> Figures:
    """Run all stages in order and test the model.

    Args:
        dataset: name of the data set.
        data_path: folder that holds the data set's folder.
        output: folder of everything that is written.
        properties: properties of QBERT4Rec or RecBole.
        config_files: property files.
        baselines: RecBole models to train on the same split.

    Returns:
        Figures of the stages, ``valid``, ``test``, ``test_with_prior``, ``baselines`` and ``checkpoints``.

    Raises:
        FileNotFoundError: the data set or a property file is missing.
        ValueError: a setting, the data or the features are refused.
    """
    job = Job.of(dataset, data_path, output, properties, config_files)
    figures: Figures = {"dataset": dataset, "seconds": {}}
    with job.locked():
        config = job.configure()
        if config["semantic_ids"] == "auto":
            log.info("semantic_ids is auto: kinds of IDs are compared without pretraining")
        elif config["pretrain_epochs"] > 0 and not config["pretrained"]:
            # The property checkpoint_file, where it is set, names the checkpoint of fine-tuning.
            _train_stage(job.with_properties(checkpoint_file=None), "pretrain", figures)
            job = job.with_properties(pretrained=figures["checkpoints"]["pretrain"], rebuild=False)  # built just now
        return _finetune(job, baselines, figures)


def demo(
    output: PathLike = "runs", properties: Mapping[str, Any] | None = None, baselines: Sequence[str] = ("Pop", "SASRec")
) -> Figures:
    """Make synthetic raw product data and run all stages on it.

    Args:
        output: folder of everything that is written; the data lie in ``demo_data``.
        properties: properties of QBERT4Rec or RecBole.
        baselines: RecBole models to train on the same split.

    Returns:
        Figures as of ``train``.
    """
    from dataset_prep.demo.shops import TARGET, prepare_demo

    data = Path(output) / "demo_data"
    started = time.perf_counter()
    with run_lock(data, "demo"):
        prepare_demo(data)
    seconds = time.perf_counter() - started
    log.info("raw reviews, metadata, product pictures and the data sets made of them: %s (%.0f s)", data, seconds)
    files = [property_file(f"dataset/{TARGET}.yaml")]
    figures = train(TARGET, data, output, properties, files, baselines)
    return figures | {"data": str(data), "seconds": {"demo data": seconds, **figures["seconds"]}}


def _builder(job: Job) -> SemanticIDBuilder:
    config = job.configure()
    with experiment.working_directory(job.folder):
        catalog = experiment.load_catalog(config)
    return builder_for(config, catalog, job.folder)


def _train_stage(job: Job, stage: str, figures: Figures) -> experiment.Run:
    """Pretrain or fine-tune; add seconds, figures of the IDs and the checkpoint's path to ``figures``."""
    checkpoint = job.properties.get("checkpoint_file") or str(job.folder / f"{stage}.pth")
    job = job.with_properties(checkpoint_file=checkpoint)
    config = job.configure(train_stage=stage)
    if stage == "pretrain":
        config = job.configure(**experiment.pretraining_settings(config))
    with experiment.working_directory(job.folder):
        run = experiment.train(config, TITLES[stage])
    for name, value in run.model.identifier_figures.items():
        figures.setdefault(name, value)
    for name, seconds in run.model.identifier_figures["seconds"].items():
        figures["seconds"][name] = max(seconds, figures["seconds"].get(name, 0.0))  # of building, not of loading
    figures["seconds"][stage] = run.seconds["training"]
    figures.setdefault("checkpoints", {})[stage] = checkpoint
    return run


def _finetune(job: Job, baselines: Sequence[str], figures: Figures) -> Figures:
    """Fine-tune and test, train the baselines, and complete the figures."""
    run = _train_stage(job, "finetune", figures)
    figures |= {"seed": run.config["seed"], "valid": run.valid, "test": run.test()}
    figures["test_history_excluded"] = run.test(history_excluded=True)
    figures["parameters"] = sum(p.numel() for p in run.model.parameters())
    if run.model.network.repeat_penalty is not None:
        figures["repeat_penalty"] = run.model.network.penalty.item()
    if run.model.prior is None:
        figures["prior"] = experiment.add_prior(run)
        figures["test_with_prior"] = run.test()
        figures["test_with_prior_history_excluded"] = run.test(history_excluded=True)
    for name in baselines:
        figures.setdefault("baselines", {})[name], seconds = _train_baseline(job, run.config, name)
        figures["seconds"][name] = seconds
    if figures["semantic_ids"]["code_sets"]:
        codes = run.model.network.codes[1:].cpu().numpy()
        figures["semantic_ids"] = summarize_ids(figures["semantic_ids"]["code_sets"], codes) | figures["semantic_ids"]
    return figures


def _train_baseline(job: Job, ours: Config, name: str) -> tuple[Figures, float]:
    """Train a RecBole model on the same split; return its metrics and the seconds of training."""
    settings = {key: ours[key] for key in SHARED_WITH_BASELINES}
    settings |= {key: ours[key] for key in ("encoding", *dataset_arguments) if key in ours.external_config_dict}
    settings["checkpoint_dir"] = str(job.folder / "checkpoints" / name)
    files = [str(property_file("baseline/common.yaml"))]
    with contextlib.suppress(FileNotFoundError):  # without a file, RecBole's defaults apply
        files.append(str(property_file(f"baseline/{name}.yaml")))
    if "load_col" in settings:
        settings["load_col"] = _columns_of_baseline(files, (ours["load_col"] or {}).get("inter", "*"))
    if "epochs" in job.properties:  # a limit that the user sets applies to every model of the table
        settings["epochs"] = job.properties["epochs"]
    config = experiment.configure(name, job.dataset, job.data_path, settings, files)
    with experiment.working_directory(job.folder):
        run = experiment.train(config, name)
    tested = {"test": run.test(), "test_history_excluded": run.test(history_excluded=True)}
    return {"valid": run.valid, **tested}, run.seconds["training"]


def _columns_of_baseline(files: Sequence[str], inter: Any) -> Figures:
    """Return ``load_col`` of a baseline: that of its property files, and the interaction columns of our run.

    Args:
        files: property files of the baseline.
        inter: ``load_col.inter`` of our run.
    """
    load: Figures = {}
    for file in files:
        load = read_properties(Path(file)).get("load_col", load)
    return load | {"inter": inter if isinstance(inter, str) else list(dict.fromkeys([*inter, *load.get("inter", ())]))}


def summarize_ids(code_sets: Sequence[Mapping[str, Any]], codes: np.ndarray) -> Figures:
    """Return the health of whole IDs, ``codes`` ``[N, K]``, with the figures of all levels of all code sets in one list."""
    joined = {key: [x for s in code_sets for x in s[key]] for key in ("levels", "usage_per_level", "perplexity_per_level")}
    return {
        "items": len(codes),
        "unique": len(np.unique(codes, axis=0)),
        "unique_before_reallocation": [s["unique_before"] for s in code_sets],
        **joined,
    }
