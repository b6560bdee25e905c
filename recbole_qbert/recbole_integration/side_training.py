"""Train another network beside the one of a training: a teacher, or one with other semantic IDs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole.utils import init_seed

from recbole_qbert.recbole_integration import checkpoint_io
from recbole_qbert.utils.distributed import barrier


def train_beside(
    parent: Any, name: str, settings: Mapping[str, Any], train_data: Any, valid_data: Any, show_progress: bool
) -> Any:
    """Train a network with the parent's settings but for some, without teachers and prior, and load its best weights.

    Its checkpoint lies beside the parent's, as ``<parent>.<name>.pth``. It resumes from its last epoch, and is not trained
    again once it is done.

    Args:
        parent: a ``QBERT4RecTrainer``.
        name: of the checkpoint, and in the log.
        settings: properties in place of the parent's.
        train_data: loader of the training rows.
        valid_data: loader of the validation rows, which choose the epoch.
        show_progress: show progress bars.

    Returns:
        The network's ``QBERT4RecTrainer``.
    """
    file = Path(parent.saved_model_file)
    checkpoint = file.with_name(f"{file.stem}.{name}.pth")
    own = {"teachers": 0, "structural_prior": "none", "checkpoint_file": str(checkpoint), **settings}
    config = copy.copy(parent.config)
    config.final_config_dict = config.final_config_dict | own
    config.external_config_dict = config.external_config_dict | own
    parent.logger.info(f"{name}, beside {file}: {checkpoint}")
    rows = train_data._dataset
    data = rows.with_settings(config) if "semantic_ids" in settings else rows
    init_seed(config["seed"], config["reproducibility"])
    model = type(parent.model)(config, data).to(parent.device)
    trainer = type(parent)(config, model)
    trainer.fit(train_data, valid_data, verbose=False, saved=True, show_progress=show_progress)
    barrier()  # until the first process has written the best weights
    checkpoint_io.load_into(model, trainer.saved_model_file)
    return trainer
