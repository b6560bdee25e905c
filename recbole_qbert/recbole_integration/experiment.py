"""Run one training through RecBole: configuration, data, model, training, figures."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.trainer import S3RecTrainer, Trainer
from recbole.utils import get_model, get_trainer, init_logger, init_seed
from tqdm import tqdm

from recbole_qbert.data.atomic_files import AtomicFormat
from recbole_qbert.pipeline.catalog import Catalog
from recbole_qbert.recbole_integration import checkpoint_io, patches
from recbole_qbert.recbole_integration.dataset import HistoryDataset
from recbole_qbert.recbole_integration.resume import TrainingState, hash_rows, hash_tensors
from recbole_qbert.recbole_integration.trainer import QBERT4RecTrainer
from recbole_qbert.sequence.cooccurrence_prior import CooccurrencePrior
from recbole_qbert.sequence.scoring import rank_of
from recbole_qbert.utils.failures import require_writable
from recbole_qbert.utils.io import digest

#: Properties that name a file or folder of the user.
FILE_PROPERTIES = ("pretrained", "semantic_id_file", "semantic_id_dir", "checkpoint_file")


@dataclass
class Run:
    """A trained model with the data it was trained on.

    Attributes:
        config: RecBole's configuration.
        model: the model with its best weights.
        trainer: RecBole's trainer; ``trainer.saved_model_file`` is the checkpoint.
        valid_data: validation loader.
        test_data: test loader.
        valid: metrics of the best epoch on validation, lower-case names.
        seconds: wall-clock seconds of ``data`` (with stages 1 and 2 where they ran), ``model`` and ``training``.
    """

    config: Config
    model: Any
    trainer: Any
    valid_data: Any
    test_data: Any
    valid: dict[str, float]
    seconds: dict[str, float]

    def test(self, history_excluded: bool = False) -> dict[str, float]:
        """Return the metrics on test by RecBole's evaluator, with the model as it is now.

        Args:
            history_excluded: rank the items of each history last, the same rule for every model.
        """
        if history_excluded:
            exclude_history(self.model)
        try:
            result = self.trainer.evaluate(self.test_data, load_best_model=False)
        finally:
            if history_excluded:
                exclude_history(self.model, False)
                self.model.exclude_history = False
        return {name: float(value) for name, value in result.items()}


def configure(
    model: str, dataset: str, data_path: str | os.PathLike[str], settings: Mapping[str, Any], files: Sequence[str] = ()
) -> Config:
    """Return RecBole's configuration; the command line of the process is not read.

    Args:
        model: registered name.
        dataset: name of the data set.
        data_path: folder that holds the data set's folder.
        settings: properties; they override files.
        files: property files; later ones override earlier ones.

    Raises:
        FileNotFoundError: a property file or the data set's ``.inter`` is missing.
        ValueError: an unknown property.
    """
    properties = {**settings, "data_path": str(Path(data_path).resolve())}
    with patches.clean_argv():
        config = Config(
            model=model,
            dataset=dataset,
            config_file_list=[str(file) for file in files],
            # Config evaluates strings (configurator.py:127); quoted, they stay what they are.
            config_dict={k: repr(v) if isinstance(v, str) else v for k, v in properties.items()},
        )
    _rename_columns(config)
    inter = Path(data_path) / dataset / f"{dataset}.inter"
    if not inter.exists() and config["benchmark_filename"] is None:
        raise FileNotFoundError(f"{inter} is missing; data_path must hold a folder {dataset} with RecBole atomic files")
    for name in FILE_PROPERTIES:  # relative to where the user is, not to the folder that a training works in
        if value := config.external_config_dict.get(name):
            path = str(Path(value).resolve())
            config.external_config_dict[name] = config.final_config_dict[name] = path
    return config


def _rename_columns(config: Config) -> None:
    """Give the columns of ``load_col`` the names of ``USER_ID_FIELD`` and its like; property files have RecBole's."""
    form, load = AtomicFormat.from_config(config), config.external_config_dict.get("load_col")
    if isinstance(load, dict):
        columns = {s: c if isinstance(c, str) else list(dict.fromkeys(form.rename(c))) for s, c in load.items() if c}
        config.external_config_dict["load_col"] = config.final_config_dict["load_col"] = load | columns


def load_catalog(config: Config) -> Catalog:
    """Return the items of a data set and the training part of its histories."""
    train: HistoryDataset = create_dataset(config).split()[0]
    return train.catalog()


def pretraining_settings(config: Config) -> dict[str, Any]:
    """Return the properties that turn a configuration into the one of its pretraining."""
    return {
        "train_stage": "pretrain",
        "pretrained": None,
        "freeze": [],
        "annealing": 0,
        "structural_prior": "none",
        "epochs": config["pretrain_epochs"],
        "learning_rate": config["pretrain_learning_rate"],
        "train_batch_size": config["pretrain_batch_size"],
    }


def train(
    config: Config,
    title: str | None = None,
    prepare: Callable[[Any], None] | None = None,
    checkpoint_file: Path | None = None,
) -> Run:
    """Train one model and load its best weights. RecBole writes its files to the current folder.

    The seed is set before the data and again before the model, so that the model does not depend on how the data were
    split.

    Args:
        config: result of ``configure``.
        title: show a progress bar over epochs with this name.
        prepare: function that is called with the model before training.
        checkpoint_file: file of the best weights, in place of the property of this name. With it an interrupted training
            resumes after its last validation and equals an uninterrupted one, also for RecBole's sequential models. Other
            models start anew (``supports_resume``).

    Returns:
        The trained model, its data and figures.

    Raises:
        ValueError: a setting, the data or the semantic IDs are refused.
    """
    seconds = {}
    require_writable(Path(config["checkpoint_dir"]), "checkpoint_dir", folder=True)
    if file := checkpoint_file or config["checkpoint_file"]:
        require_writable(Path(file), "checkpoint_file")
    patches.fresh_logging()
    init_seed(config["seed"], config["reproducibility"])
    init_logger(config)
    started = time.perf_counter()
    train_data, valid_data, test_data = data_preparation(config, create_dataset(config))
    seconds["data"] = time.perf_counter() - started
    started = time.perf_counter()
    init_seed(config["seed"], config["reproducibility"])
    model = get_model(config["model"])(config, train_data._dataset).to(config["device"])
    seconds["model"] = time.perf_counter() - started
    if prepare:
        prepare(model)
    if checkpoint_file:
        config["checkpoint_file"] = str(checkpoint_file)  # which QBERT4RecTrainer reads
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    started = time.perf_counter()
    progress = None
    if checkpoint_file and supports_resume(trainer):
        trainer.saved_model_file = str(checkpoint_file)
        progress = TrainingState(checkpoint_file, config, _start(model, train_data._dataset), train_data.generator)
        trainer.progress = progress
    with tqdm(
        total=config["epochs"], desc=f"{title or '':<18}", ncols=100, disable=None if title else True, leave=False
    ) as bar:

        def show(_: int, score: float) -> None:
            bar.update()
            bar.set_postfix_str(f"{config['valid_metric']} {score:.4f} (best {max(trainer.best_valid_score, score):.4f})")

        # RecBole's own bars, one per epoch and validation, would overwrite this one.
        fit = partial(trainer.fit, train_data, valid_data, True, True, False)
        _, valid = progress.fit(trainer, fit, train_data, valid_data, show) if progress else fit(show)
    seconds["training"] = time.perf_counter() - started
    checkpoint_io.load_into(model, trainer.saved_model_file)
    model.eval()
    valid = {name: float(value) for name, value in (valid or {}).items()}
    return Run(config, model, trainer, valid_data, test_data, valid, seconds)


def supports_resume(trainer: Any) -> bool:
    """Return whether weights, optimizer and random states are the whole state of a RecBole training.

    They are for its sequential models under its plain trainer. For S3Rec they are, too, except in pretraining, which has no
    validation to call back after. Other models have more state: RecVAE a second optimizer, MultiVAE a count of steps, KGAT
    a loader.
    """
    return type(trainer) in (Trainer, S3RecTrainer) and isinstance(trainer.model, SequentialRecommender)


def _start(model: torch.nn.Module, rows: Any) -> str:
    """Return a digest of the weights and data that a training starts from."""
    return digest([hash_tensors(model.state_dict()), hash_rows(rows)])


def add_prior(run: Run) -> dict[str, float]:
    """Add the co-occurrence prior to a trained QBERT4Rec, with its weight fitted on validation; return the choice."""
    data = run.valid_data._dataset
    prior = CooccurrencePrior(data.histories, run.model.n_items, content=data.content_likeness())
    run.model.prior = prior.to(run.model.device)
    return run.trainer.fit_prior(run.valid_data)


def exclude_history(model: Any, exclude: bool = True) -> None:
    """Let a sequential model's ``full_sort_predict`` rank the items of the history last, or, without ``exclude``, as before.

    ``model.exclude_history`` remains set: QBERT4RecTrainer ranks without ``full_sort_predict``, and fits the prior under it.
    RecBole itself excludes the history of its general models.
    """
    if not exclude:
        vars(model).pop("full_sort_predict", None)
        return
    model.exclude_history = True
    if not hasattr(model, "ITEM_SEQ"):
        return
    plain = model.full_sort_predict

    def excluded(interaction: Any) -> torch.Tensor:
        scores = plain(interaction).view(len(interaction), -1).clone()
        return scores.scatter(1, interaction[model.ITEM_SEQ], -torch.inf)

    model.full_sort_predict = excluded


@torch.no_grad()
def target_ranks(run: Run, data: Any, exclude_history: bool) -> np.ndarray:
    """Return the rank of each user's target among all items, counted from 1; ties count against the model.

    Args:
        run: a trained model, ours or RecBole's.
        data: ``run.valid_data`` or ``run.test_data``.
        exclude_history: rank the items of the history that the model reads (the newest ``MAX_ITEM_LIST_LENGTH``) last; the
            same rule for every model. For general models, such as Pop, RecBole itself always excludes the whole history.

    Returns:
        ``[users]`` int64 in the order of the users' internal ids.
    """
    model, ranks, owners = run.model.eval(), [], []
    if isinstance(run.trainer, QBERT4RecTrainer):
        users = data._dataset.inter_feat[model.USER_ID]
        return run.trainer.target_ranks(data, exclude_history=exclude_history)[users.argsort()].numpy()
    for interaction, seen, _, target in data:
        interaction = interaction.to(model.device)
        scores = model.full_sort_predict(interaction).view(len(interaction), -1)[:, : run.valid_data._dataset.item_num]
        scores = scores.clone()
        if seen is not None:  # general models get the history separately
            scores[seen] = -torch.inf
        elif exclude_history:
            scores.scatter_(1, interaction[model.ITEM_SEQ], -torch.inf)
        scores[:, 0] = -torch.inf
        ranks.append(rank_of(scores, target.to(scores.device)).cpu())
        owners.append(interaction[model.USER_ID].cpu())
    return torch.cat(ranks)[torch.cat(owners).argsort()].numpy()


@contextmanager
def working_directory(folder: Path) -> Iterator[None]:
    """Work in ``folder``, because RecBole always writes its logs to the current folder."""
    folder.mkdir(parents=True, exist_ok=True)
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
