"""Where an interrupted training goes on: the state after the last whole epoch, and one line a epoch in a log beside it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from recbole_qbert import checkpoints
from recbole_qbert.artifacts import digest, whole
from recbole_qbert.config import INCIDENTAL

# What may differ between a run and its continuation; files count by their content (``fingerprint``).
_VOLATILE = INCIDENTAL | {"pretrained", "semantic_id_file", "epochs"}


class ProgressFile:
    """State of one training run in ``<checkpoint>.progress``, its log in ``<checkpoint>.jsonl``.

    A file of another run (other settings, data, identifiers or starting weights) is not gone on from: it is replaced.

    Args:
        checkpoint: where the best weights go.
        config: RecBole's configuration.
        model: as it is before training.
    """

    def __init__(self, checkpoint: Path, config: Any, model: Any) -> None:
        self.checkpoint = checkpoint
        self.path, self.log = checkpoint.with_suffix(".progress"), checkpoint.with_suffix(".jsonl")
        settings = {k: str(v) for k, v in config.final_config_dict.items() if k not in _VOLATILE}
        self.run = digest([settings, model.fingerprint()])
        self.started = time.perf_counter()

    def load(self, trainer: Any) -> bool:
        """Put a trainer where the file says; false where there is nothing to go on from."""
        if not (self.path.exists() and self.checkpoint.exists()):
            return False
        try:
            state = checkpoints.load_checkpoint(self.path)
        except ValueError as error:
            trainer.logger.warning(f"starting anew: {error}")
            return False
        if state.get("run") != self.run:
            trainer.logger.info(f"{self.path} is of another run: starting anew")
            return False
        try:
            trainer.model.load_state_dict(state["state_dict"])
        except RuntimeError as error:
            trainer.logger.warning(f"{self.path} was written by another version, starting anew: {error}")
            return False
        trainer.start_epoch, trainer.cur_step = state["epoch"] + 1, state["cur_step"]
        trainer.best_valid_score, trainer.best_valid_result = state["best_valid_score"], state["best_valid_result"]
        trainer.train_loss_dict = state["losses"]
        trainer.optimizer.load_state_dict(state["optimizer"])
        self._cut_log(state["epoch"])
        return True

    def save(self, trainer: Any, epoch: int, score: float) -> None:
        """Keep the state after an epoch and add its line to the log.

        The best weights lie in RecBole's own checkpoint, which was written before: a kill between the two repeats an epoch.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if epoch == 0:
            self.log.unlink(missing_ok=True)
        line = {"epoch": epoch, "loss": trainer.train_loss_dict[epoch], trainer.valid_metric: float(score)}
        line |= {"seconds": round(time.perf_counter() - self.started, 3), "best": float(trainer.best_valid_score)}
        with open(self.log, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(line) + "\n")
        state = {
            "run": self.run,
            "epoch": epoch,
            "cur_step": trainer.cur_step,
            "best_valid_score": float(trainer.best_valid_score),
            "best_valid_result": {k: float(v) for k, v in (trainer.best_valid_result or {}).items()},
            "losses": {int(k): float(v) for k, v in trainer.train_loss_dict.items()},
            "state_dict": trainer.model.state_dict(),
            "optimizer": trainer.optimizer.state_dict(),
        }
        checkpoints.write_checkpoint(state, self.path)

    def _cut_log(self, last: int) -> None:
        """Drop lines of epochs that will be run again."""
        if not self.log.exists():
            return
        lines = self.log.read_text(encoding="utf-8").splitlines()
        with whole(self.log) as temporary:
            temporary.write_text("".join(f"{x}\n" for x in lines if x and json.loads(x)["epoch"] <= last), encoding="utf-8")
