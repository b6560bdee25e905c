"""RecBole trainer of generative models: epochs of examples, learning rates that fall, ranks by a trie."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from recbole_qbert.recbole_integration.optimizer import WarmupAdamW
from recbole_qbert.recbole_integration.trainer import QBERT4RecTrainer


class ScheduledAdamW(WarmupAdamW):
    """AdamW whose learning rate rises linearly and then stays, or falls until the last step.

    Args:
        groups: parameter groups.
        schedule: ``constant``, ``linear``, ``cosine`` (both to 0) or ``inverse_sqrt`` (as T5: with the root of the steps).
        total_steps: steps of all epochs.
        settings: arguments of ``WarmupAdamW``.
    """

    def __init__(self, groups: Any, *, schedule: str, total_steps: int, eps: float, **settings: Any) -> None:
        super().__init__(groups, **settings)
        for group in self.param_groups:
            group["schedule"], group["total_steps"], group["eps"] = schedule, total_steps, eps

    def share_of_rate(self, group: Mapping[str, Any]) -> float:
        """Return the share of the learning rate at the step that a parameter group has come to."""
        taken, warmup = group["taken"], max(group["warmup_steps"], 1)
        if taken < warmup:
            return taken / warmup
        left = max(0.0, (group["total_steps"] - taken) / max(group["total_steps"] - warmup, 1))
        shares = {"linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left), "inverse_sqrt": math.sqrt(warmup / taken)}
        return shares.get(group["schedule"], 1.0)


class GenerativeTrainer(QBERT4RecTrainer):
    """``QBERT4RecTrainer`` whose epochs are the model's examples. Resuming, processes and evaluation by ranks are the same.

    An epoch's examples, order and draws depend on the seed and the epoch's number, so a resumed training equals one that was
    not interrupted. With ``valid_users`` the epoch is chosen on a seeded sample of the validation users.
    """

    rows_are = "examples"

    def __init__(self, config: Any, model: Any) -> None:
        super().__init__(config, model)
        self._samples: dict[int, tuple[Any, Any]] = {}  # loaders and their samples, by id

    def _build_optimizer(self, **kwargs: Any) -> Any:
        """Build AdamW with the schedule of ``lr_schedule`` and no decay on vectors; RecBole builds other learners."""
        optimizer = super()._build_optimizer(**kwargs)
        if not isinstance(optimizer, WarmupAdamW):
            return optimizer
        settings = self.model.settings
        steps = math.ceil(len(self.model.examples) / self.config["train_batch_size"]) * int(self.config["epochs"])
        groups = [{key: group[key] for key in ("params", "weight_decay")} for group in optimizer.param_groups]
        return ScheduledAdamW(
            groups,
            schedule=settings.lr_schedule,
            total_steps=steps,
            eps=settings.adam_eps,
            lr=self.learning_rate,
            betas=tuple(settings.adam_betas),
            warmup_steps=settings.warmup_steps or round(settings.warmup_ratio * steps),
        )

    def _train_epoch(self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False) -> float:
        """Train on all examples once."""
        self.model.examples.epoch = epoch_idx
        return super()._train_epoch(train_data, epoch_idx, loss_func, show_progress)

    def _training_rows(self, rows: Any) -> Any:
        del rows
        return self.model.examples

    def _users(self, rows: Any, generator: torch.Generator) -> Tensor:
        """Return the order of the epoch's examples."""
        del rows
        return torch.randperm(len(self.model.examples), generator=generator)

    def _valid_epoch(self, valid_data: Any, show_progress: bool = False) -> tuple[float, Any]:
        """Validate on all users, or on the sample of ``valid_users``."""
        return super()._valid_epoch(self._sample(valid_data), show_progress)

    def _sample(self, valid_data: Any) -> Any:
        rows, count = valid_data._dataset, self.model.settings.valid_users
        if not count or count >= len(rows):
            return valid_data
        if id(valid_data) not in self._samples:
            generator = torch.Generator().manual_seed(int(self.config["seed"]))
            chosen = torch.randperm(len(rows), generator=generator)[:count].sort().values
            sample = copy.copy(valid_data)
            sample._dataset = rows.copy(rows.inter_feat[chosen])
            self._samples[id(valid_data)] = valid_data, sample
        return self._samples[id(valid_data)][1]

    def _rank_function(self) -> Callable[[Any, Tensor, Tensor, Tensor | None], Tensor]:
        rank: Callable[[Any, Tensor, Tensor, Tensor | None], Tensor] = self.model.eval().rank_function()
        return rank
