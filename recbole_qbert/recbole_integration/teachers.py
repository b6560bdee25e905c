"""Train an ensemble of teachers before a network that learns from them (``sequence.soft_targets``)."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from recbole.utils import init_seed

from recbole_qbert.recbole_integration import checkpoint_io
from recbole_qbert.sequence import soft_targets
from recbole_qbert.sequence.soft_targets import SoftTargets
from recbole_qbert.utils.distributed import barrier

SEED_STEP = 7919  # a teacher's seed is none of the small numbers that trainings are repeated with


def learn_from_teachers(student: Any, train_data: Any, valid_data: Any, show_progress: bool) -> SoftTargets | None:
    """Train the teachers of a network, each with a seed of its own; compute what they expect of the training rows.

    A teacher is the network itself, on the same data, with the same settings. Its checkpoint lies beside the student's, as
    ``<name>.teacher1.pth``. With ``checkpoint_file``, every teacher resumes from its last epoch, and one that is done is not
    trained again.

    Args:
        student: a ``QBERT4RecTrainer`` before its first epoch.
        train_data: loader of the training rows.
        valid_data: loader of the validation rows, which choose each teacher's epoch.
        show_progress: show progress bars.

    Returns:
        The soft targets; ``None`` where the property ``teachers`` is 0.
    """
    settings = student.model.settings
    if not settings.teachers:
        return None
    file = Path(student.saved_model_file)
    networks = []
    for number in range(1, settings.teachers + 1):
        config = _teacher_config(student.config, number, file.with_name(f"{file.stem}.teacher{number}.pth"))
        init_seed(config["seed"], config["reproducibility"])
        model = type(student.model)(config, train_data._dataset).to(student.device)
        trainer = type(student)(config, model)
        student.logger.info(f"teacher {number} of {settings.teachers}: {trainer.saved_model_file}")
        trainer.fit(train_data, valid_data, verbose=False, saved=True, show_progress=show_progress)
        barrier()  # until the first process has written the best weights
        checkpoint_io.load_into(model, trainer.saved_model_file)
        networks.append(model.eval().network)
    rows = train_data._dataset.inter_feat
    sequences, lengths = rows[student.model.ITEM_SEQ].to(student.device), rows[student.model.ITEM_SEQ_LEN].to(student.device)
    return soft_targets.of_ensemble(networks, sequences, lengths, settings.teacher_weight)


def _teacher_config(config: Any, number: int, checkpoint: Path) -> Any:
    """Return the student's configuration with another seed and checkpoint, without teachers and prior."""
    own = copy.copy(config)
    own.final_config_dict = {
        **config.final_config_dict,
        "seed": int(config["seed"]) + SEED_STEP * number,
        "teachers": 0,
        "structural_prior": "none",
        "checkpoint_file": str(checkpoint),
    }
    return own
