"""RecBole trainer: AdamW with warm-up, and the weight of the structural prior fitted on validation."""

from __future__ import annotations

from typing import Any

import torch
from recbole.trainer import Trainer

from recbole_qbert import compat
from recbole_qbert.cooccurrence import fit_weight


class WarmupAdamW(torch.optim.AdamW):
    """AdamW whose learning rate rises linearly over the first steps.

    The count of steps lies in the parameter groups, so it is saved and resumed with them.
    """

    def __init__(self, groups: Any, *, lr: float, betas: tuple[float, float], warmup_steps: int) -> None:
        super().__init__(groups, lr=lr, betas=betas)
        for group in self.param_groups:
            group["full_lr"], group["warmup_steps"], group["taken"] = lr, warmup_steps, 0

    def step(self, closure: Any = None) -> Any:
        """One update at the learning rate that the warm-up allows."""
        for group in self.param_groups:
            group["taken"] += 1
            group["lr"] = group["full_lr"] * min(1.0, group["taken"] / max(group["warmup_steps"], 1))
        return super().step(closure)


class QBERT4RecTrainer(Trainer):  # type: ignore[misc]
    """RecBole's ``Trainer``, with what QBERT4Rec adds."""

    def _build_optimizer(self, **kwargs: Any) -> Any:
        """AdamW with warm-up and no decay on vectors and scalars; other learners as RecBole builds them."""
        if self.learner.lower() != "adamw" or kwargs:
            return super()._build_optimizer(**kwargs)
        matrices = [p for p in self.model.parameters() if p.dim() > 1]
        rest = [p for p in self.model.parameters() if p.dim() <= 1]
        groups = [{"params": matrices, "weight_decay": self.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        settings = self.model.settings
        return WarmupAdamW(
            groups, lr=self.learning_rate, betas=tuple(settings.adam_betas), warmup_steps=settings.warmup_steps
        )

    def fit(self, train_data: Any, valid_data: Any = None, *args: Any, **kwargs: Any) -> tuple[float, Any]:
        """Train; then, with a structural prior, fit its weight on validation with the best weights of the network."""
        result = super().fit(train_data, valid_data, *args, **kwargs)
        saved = args[1] if len(args) > 1 else kwargs.get("saved", True)
        if self.model.prior is None or not valid_data or not saved:
            return result
        checkpoint = compat.load_checkpoint(self.saved_model_file)
        self.model.load_state_dict(checkpoint["state_dict"])
        found = self.fit_prior(valid_data)
        self.logger.info(f"structural prior fitted on validation: {found}")
        checkpoint["state_dict"] = self.model.state_dict()
        self.best_valid_result = self.evaluate(valid_data, load_best_model=False)
        self.best_valid_score = self.best_valid_result[self.valid_metric]
        checkpoint["best_valid_score"] = float(self.best_valid_score)
        compat.write_checkpoint(checkpoint, self.saved_model_file)
        return self.best_valid_score, self.best_valid_result

    @torch.no_grad()
    def fit_prior(self, valid_data: Any) -> dict[str, float]:
        """Choose weight and epsilon of the prior by NDCG@10 on validation; returns the choice."""
        model = self.model.eval()

        def batches() -> Any:
            for interaction, _, _, target in valid_data:
                interaction = interaction.to(self.device)
                lengths = interaction[model.ITEM_SEQ_LEN]
                sequences = interaction[model.ITEM_SEQ][:, : int(lengths.max())]
                yield model.network.scores(sequences, lengths), sequences, lengths, target.to(self.device)

        return fit_weight(model.prior, batches())
