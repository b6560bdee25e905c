"""Train an ensemble of teachers before a network that learns from them (``sequence.soft_targets``)."""

from __future__ import annotations

from typing import Any

from recbole_qbert.recbole_integration.side_training import train_beside
from recbole_qbert.sequence import soft_targets
from recbole_qbert.sequence.soft_targets import SoftTargets

SEED_STEP = 7919  # a teacher's seed is none of the small numbers that trainings are repeated with


def learn_from_teachers(student: Any, train_data: Any, valid_data: Any, show_progress: bool) -> SoftTargets | None:
    """Train the teachers of a network, each with a seed of its own; compute what they expect of the training rows.

    A teacher is the network itself, on the same data, with the same settings. Its checkpoint lies beside the student's, as
    ``<name>.teacher1.pth`` (``side_training``).

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
    networks = []
    for number in range(1, settings.teachers + 1):
        seed = {"seed": int(student.config["seed"]) + SEED_STEP * number}
        teacher = train_beside(student, f"teacher{number}", seed, train_data, valid_data, show_progress)
        networks.append(teacher.model.eval().network)
    rows = train_data._dataset.inter_feat
    sequences, lengths = rows[student.model.ITEM_SEQ].to(student.device), rows[student.model.ITEM_SEQ_LEN].to(student.device)
    return soft_targets.of_ensemble(networks, sequences, lengths, settings.teacher_weight)
