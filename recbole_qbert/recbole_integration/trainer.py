"""RecBole trainer with AdamW and warm-up, resumable epochs, several processes, and evaluation by ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from recbole.trainer import Trainer
from recbole.utils import init_seed
from torch import Tensor, distributed
from tqdm import tqdm

from recbole_qbert.data.multi_domain import balanced_order
from recbole_qbert.recbole_integration import checkpoint_io
from recbole_qbert.recbole_integration.id_choice import train_best_kind
from recbole_qbert.recbole_integration.optimizer import WarmupAdamW, stored_gradients
from recbole_qbert.recbole_integration.resume import Callback, TrainingState
from recbole_qbert.recbole_integration.teachers import learn_from_teachers
from recbole_qbert.retrieval.catalog_ranker import CatalogRanker
from recbole_qbert.sequence import prior_fitting
from recbole_qbert.sequence.soft_targets import SoftTargets
from recbole_qbert.utils.distributed import barrier

#: Steps of an epoch below which a warning is given: early stopping counts epochs.
FEW_STEPS = 4


class QBERT4RecTrainer(Trainer):  # type: ignore[misc]
    """RecBole's ``Trainer`` with its own epochs, evaluation and resuming.

    *An epoch* is a function of the weights, the optimizer, the seed and the epoch's number. Everything random in it (order
    of users, masks, dropout) starts from a seed that is computed from the last two. A run that resumes after a saved epoch
    therefore needs no random state, and equals an uninterrupted one.

    *Several processes* see the same batches. Each process computes every n-th row, and gradients are summed. So n processes
    train as one does, on batches of ``train_batch_size`` users in total. Each user is seen once.

    *Evaluation* needs only the rank of each user's target. RecBole's evaluator computes its metrics from the ranks. Ties
    count against the model. With several processes each ranks a share of the users, and all receive all ranks.
    """

    rows_are = "users"  # what an epoch goes through

    def __init__(self, config: Any, model: Any) -> None:
        super().__init__(config, model)
        self.parallel = not config["single_spec"]
        self.rank = distributed.get_rank() if self.parallel else 0
        self.world = distributed.get_world_size() if self.parallel else 1
        self.best_valid_score: float
        self.best_valid_result: Any
        self.train_loss_dict: dict[int, float]
        self.annealing = False  # the second phase of training; part of a resumable state
        self._moved: dict[int, tuple[Any, Any]] = {}  # data sets and their rows on the device, by id
        self.progress = None
        self._teach: Callable[[], SoftTargets | None] = lambda: None
        if config["checkpoint_file"]:
            self.saved_model_file = str(config["checkpoint_file"])
            self.progress = TrainingState(Path(self.saved_model_file), config, model.fingerprint())

    # -------------------------------------------------------------------------------------------------- training
    def _build_optimizer(self, **kwargs: Any) -> Any:
        """Build AdamW with warm-up and no decay on vectors and scalars; RecBole builds other learners."""
        if self.learner.lower() != "adamw" or kwargs:
            return super()._build_optimizer(**kwargs)
        learning = [p for p in self.model.parameters() if p.requires_grad]
        matrices, rest = [p for p in learning if p.dim() > 1], [p for p in learning if p.dim() <= 1]
        groups = [{"params": matrices, "weight_decay": self.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        settings = self.model.settings
        return WarmupAdamW(
            groups, lr=self.learning_rate, betas=tuple(settings.adam_betas), warmup_steps=settings.warmup_steps
        )

    def fit(
        self,
        train_data: Any,
        valid_data: Any = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Callback | None = None,
    ) -> tuple[float, Any]:
        """Train, or resume after the last complete epoch; then fit the weight of a structural prior on validation.

        With ``saved=False`` no file holds the best weights, and the prior is fitted to those of the last epoch.

        Args:
            train_data: loader of the training rows.
            valid_data: loader of the validation rows, which choose the best epoch.
            verbose: write a line per epoch to the log.
            saved: write the best weights to ``saved_model_file``.
            show_progress: show progress bars.
            callback_fn: function that is called with epoch and score after every validation.

        Returns:
            Best score and metrics on validation.
        """
        if self.config["semantic_ids"] == "auto" and valid_data:
            trained = train_best_kind(self, train_data, valid_data, show_progress).trainer
            self._choose_ids(trained, train_data._dataset)
            if not self.model.settings.teachers:
                return self._take_over(trained, valid_data, saved)
        self._teach = cache(partial(learn_from_teachers, self, train_data, valid_data, show_progress))
        fit = partial(super().fit, train_data, valid_data, verbose, saved, show_progress)

        def run() -> Any:
            if self.progress:
                return self.progress.fit(self, fit, train_data, valid_data, callback_fn)
            return fit(callback_fn)

        result = run()
        if self._anneals(valid_data, saved):
            self._start_annealing()
            result = run()
        return self._with_prior(valid_data, saved) if valid_data else result

    def _anneals(self, valid_data: Any, saved: bool) -> bool:
        """Return whether validation has stood still for the first time, and epochs are left."""
        stopped = self.cur_step > self.stopping_step and len(self.train_loss_dict) < self.epochs
        wanted = getattr(self.model.settings, "annealing", 0)  # which settings of other networks do not have
        return bool(wanted and valid_data and saved and stopped and not self.annealing)

    def _start_annealing(self) -> None:
        """Go back to the best weights, and train the views that rank alone at a lower learning rate.

        Paper silent; chosen because a second view teaches at first and stands in the way in the end (docs/results.md). The
        best weights of both phases count.
        """
        barrier()  # until the first process has written the best weights
        checkpoint_io.load_into(self.model, self.saved_model_file)
        self.annealing, self.cur_step = True, 0
        self.start_epoch = max(self.train_loss_dict) + 1
        self.optimizer = self._build_optimizer()
        for group in self.optimizer.param_groups:
            group["full_lr"] = group["lr"] = self.learning_rate * self.model.settings.annealing
            group["warmup_steps"] = 0
        if self.progress and self.rank == 0:
            self.progress.save(self, self.start_epoch - 1)  # a run that is killed from here on does not go back again
        barrier()
        self.logger.info(f"annealing from epoch {self.start_epoch} on")

    def _choose_ids(self, trained: QBERT4RecTrainer, rows: Any) -> None:
        """Take the semantic IDs of another training in place of ``auto``, with a network that is not trained."""
        chosen = {key: trained.config[key] for key in ("semantic_ids", "semantic_id_dir", "rq_levels")}
        self.config.final_config_dict.update(chosen)
        self.config.external_config_dict.update(chosen)
        built, figures = self.model.identifier_figures["seconds"], trained.model.identifier_figures
        seconds = {name: max(value, built.get(name, 0.0)) for name, value in figures["seconds"].items()}  # not of loading
        rows.semantic_ids, rows.identifier_figures = trained.model.ids, figures | {"seconds": seconds}  # of teachers, too
        init_seed(self.config["seed"], self.config["reproducibility"])
        self.model.take_over(type(self.model)(self.config, rows).to(self.device))
        self.optimizer = self._build_optimizer()
        if self.progress:
            self.progress = TrainingState(Path(self.saved_model_file), self.config, self.model.fingerprint())

    def _take_over(self, trained: QBERT4RecTrainer, valid_data: Any, saved: bool) -> tuple[float, Any]:
        """End with the weights and the scores of another training; with ``saved``, write them."""
        self.model.network = trained.model.network
        self.optimizer = self._build_optimizer()
        self.best_valid_score, self.best_valid_result = trained.best_valid_score, trained.best_valid_result
        self.train_loss_dict, self.cur_step = trained.train_loss_dict, trained.cur_step
        if saved:
            self._save_checkpoint(len(self.train_loss_dict) - 1, verbose=False)
        return self._with_prior(valid_data, saved)

    def _warn_of_few_steps(self, rows: int) -> None:
        """Say that early stopping may come before anything is learned, where an epoch has only a few steps."""
        batch, patience = self.config["train_batch_size"], self.stopping_step
        steps = -(-rows // batch)
        if steps < FEW_STEPS and self.rank == 0 and 0 < patience < self.epochs:
            self.logger.warning(
                f"An epoch has {steps} step{'s' * (steps > 1)} ({rows} {self.rows_are}, train_batch_size {batch}), so "
                f"stopping_step {patience} may end training before anything is learned: lower train_batch_size to about "
                f"{max(rows // 8, 1)}, or raise stopping_step"
            )

    def _train_epoch(self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False) -> float:
        """Train on all users once; return the summed loss of the batches."""
        del loss_func
        soft = self._teach()
        # Only networks with views are annealed; the others' batch_loss need not know of them.
        views = {"views": self.model.network.config.ranking_views} if self.annealing else {}
        self.model.train()
        rows = train_data._dataset
        seed = (int(self.config["seed"]) * 1_000_003 + epoch_idx) % 2**62
        masks = torch.Generator(self.device).manual_seed(seed + 1)
        torch.manual_seed(seed + 2 + self.rank)  # dropout; a process drops its own
        order = self._users(rows, torch.Generator().manual_seed(seed))
        if epoch_idx == 0:
            self._warn_of_few_steps(len(order))
        at_hand = self._training_rows(rows)
        total = 0.0
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.enable_scaler)
        for index in tqdm(
            order.split(self.config["train_batch_size"]),
            desc=f"epoch {epoch_idx}",
            ncols=100,
            leave=False,
            disable=not show_progress,
        ):
            batch = at_hand[index].to(self.device)
            self.optimizer.zero_grad()
            with _products(self.model.settings.matmul_precision):
                with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.enable_amp):
                    expected = soft and soft.rows(index)
                    loss = self.model.batch_loss(batch, masks, (self.rank, self.world), expected, **views)
                scaler.scale(loss).backward()
            value = self._sum_over_processes(loss.detach())
            self._check_nan(value)
            scaler.unscale_(self.optimizer)
            if self.clip_grad_norm:
                torch.nn.utils.clip_grad_norm_(stored_gradients(self.model.parameters()), **self.clip_grad_norm)
            scaler.step(self.optimizer)
            scaler.update()
            total += value.item()
        return total

    def _valid_epoch(self, valid_data: Any, show_progress: bool = False) -> tuple[float, Any]:
        """Validate between epochs with the matrix products of training (``matmul_precision``). Tests use full precision."""
        with _products(self.model.settings.matmul_precision):
            return super()._valid_epoch(valid_data, show_progress)

    def _training_rows(self, rows: Any) -> Any:
        """Return what a batch of an epoch is selected from by row numbers."""
        return self._at_hand(rows)

    def _at_hand(self, rows: Any) -> Any:
        """Return the rows of a data set as one ``Interaction`` on the model's device, moved there once.

        Rows that would take more than a tenth of a GPU's memory stay on the CPU, and batches are moved.
        """
        if self.device.type == "cpu":
            return rows.inter_feat
        if id(rows) not in self._moved:
            size = sum(rows.inter_feat[field].nbytes for field in rows.inter_feat)
            fits = self.device.type != "cuda" or size < torch.cuda.get_device_properties(self.device).total_memory / 10
            # The data set is stored, too, so that its id is not used again.
            self._moved[id(rows)] = rows, rows.inter_feat.to(self.device) if fits else rows.inter_feat
        return self._moved[id(rows)][1]

    def _users(self, rows: Any, generator: torch.Generator) -> Tensor:
        """Return the order of the epoch's rows, ``[U]``."""
        domains = self.model.network.domains
        if domains is None or self.model.settings.domain_sampling == "proportional":
            return torch.randperm(len(rows), generator=generator)
        return balanced_order(domains.cpu()[rows.inter_feat[self.model.ITEM_SEQ][:, 0]], generator)

    def _sum_over_processes(self, loss: Tensor) -> Tensor:
        """Sum gradients, and the loss for the log, in one exchange."""
        if not self.parallel:
            return loss
        learning = [p for p in self.model.parameters() if p.requires_grad]
        for parameter in learning:
            if parameter.grad is None:  # in a process whose share of the batch has no target for it
                parameter.grad = torch.zeros_like(parameter)
        # Of a sample, the same rows in every process.
        stored = [values for stand_in in stored_gradients(learning) if (values := stand_in.grad) is not None]
        flat = torch.cat([*(values.flatten() for values in stored), loss.reshape(1)])
        distributed.all_reduce(flat)
        for values, summed in zip(stored, flat.split([values.numel() for values in stored] + [1]), strict=False):
            values.copy_(summed.view_as(values))
        return flat[-1]

    # ------------------------------------------------------------------------------------------------ evaluation
    @torch.no_grad()
    def evaluate(
        self, eval_data: Any, load_best_model: bool = True, model_file: Any = None, show_progress: bool = False
    ) -> Any:
        """Evaluate as RecBole does, but from the ranks of the targets alone if the metrics need only these.

        Args:
            eval_data: loader of validation or test rows.
            load_best_model: load the best weights first.
            model_file: file of the weights; by default ``saved_model_file``.
            show_progress: show progress bars.

        Returns:
            RecBole's metrics.
        """
        needed = {name for name in ("rec.topk", "rec.items", "rec.meanrank", "rec.score") if self._needs(name)}
        if eval_data and load_best_model:
            path = model_file or self.saved_model_file
            checkpoint_io.load_into(self.model, path)
            self.logger.info(f"Loading model structure and parameters from {path}")
        if not eval_data or needed != {"rec.topk"} or not _is_full_ranking(eval_data):
            return super().evaluate(eval_data, load_best_model=False, show_progress=show_progress)
        self.model.eval()
        rank = self.target_ranks(eval_data, show_progress, self.model.exclude_history)
        most = max(self.config["topk"])
        hits = (torch.arange(1, most + 1) == rank[:, None]).int()
        self.eval_collector.data_struct.update_tensor("rec.topk", torch.cat([hits, torch.ones(len(rank), 1).int()], 1))
        result = self.evaluator.evaluate(self.eval_collector.get_data_struct())
        self.wandblogger.log_eval_metrics(result, head="eval")
        return result

    def _needs(self, name: str) -> bool:
        return bool(self.eval_collector.register.need(name))

    @torch.no_grad()
    def target_ranks(self, eval_data: Any, show_progress: bool = False, exclude_history: bool = False) -> Tensor:
        """Return the rank of each row's target among all items, from 1.

        It needs no ``[B, N]`` scores in memory (``CatalogRanker``).

        Args:
            eval_data: loader of validation or test rows.
            show_progress: show a bar.
            exclude_history: rank the items of a row's history last.

        Returns:
            ``[U]`` int64 on the CPU, in the order of the rows.
        """
        rows, rank = eval_data._dataset, self._rank_function()
        at_hand = self._at_hand(rows)
        lengths = rows.inter_feat[self.model.ITEM_SEQ_LEN]
        # Rows of similar length share a batch, so that few are padded. Processes take whole batches, so that a batch gives
        # the same numbers in whichever process.
        batches = lengths.argsort(stable=True).split(self.config["eval_batch_size"])
        ranks = torch.zeros(len(rows), dtype=torch.int64, device=self.device)
        own = batches[self.rank :: self.world]
        for index in tqdm(own, desc="ranking", ncols=100, leave=False, disable=not show_progress):
            if not len(index):  # the data set has no rows
                continue
            batch = at_hand[index].to(self.device)
            length = batch[self.model.ITEM_SEQ_LEN]
            sequences = batch[self.model.ITEM_SEQ][:, : int(length.max())]
            exclude = sequences.masked_fill(sequences == 0, -1) if exclude_history else None
            ranks[index.to(self.device)] = rank(batch, sequences, length, exclude)
        if self.parallel:
            distributed.all_reduce(ranks)
        return ranks.cpu()

    def _rank_function(self) -> Callable[[Any, Tensor, Tensor, Tensor | None], Tensor]:
        """Return a function from ``(rows, sequences [B, L], lengths [B], excluded items [B, X])`` to ranks, ``[B]``."""
        ranker = CatalogRanker(self.model.eval().network, self.model.prior)

        def rank(rows: Any, sequences: Tensor, lengths: Tensor, exclude: Tensor | None) -> Tensor:
            return ranker.rank(sequences, lengths, rows[self.model.ITEM_ID], exclude=exclude)

        return rank

    # ----------------------------------------------------------------------------------------- structural prior
    def _with_prior(self, valid_data: Any, saved: bool) -> tuple[float, Any]:
        """Fit the prior of the model, if it has one, and write it; return best score and metrics on validation."""
        barrier()  # until the first one has written the best weights
        if self.model.prior is None:
            return self.best_valid_score, self.best_valid_result
        checkpoint = checkpoint_io.load_into(self.model, self.saved_model_file) if saved else None
        choice = self.fit_prior(valid_data)
        self.logger.info(f"structural prior fitted on validation: {choice}")
        self.best_valid_result = self.evaluate(valid_data, load_best_model=False)
        self.best_valid_score = self.best_valid_result[self.valid_metric]
        if checkpoint:
            checkpoint |= {"state_dict": self.model.state_dict(), "best_valid_score": float(self.best_valid_score)}
            if self.rank == 0:
                checkpoint_io.write_checkpoint(checkpoint, self.saved_model_file)
            barrier()  # the others read it next
        return self.best_valid_score, self.best_valid_result

    @torch.no_grad()
    def fit_prior(self, valid_data: Any) -> dict[str, float]:
        """Fit the prior by NDCG@10 on validation, with the history excluded if ``evaluate`` excludes it.

        Returns:
            The chosen weight and epsilon, and figures.
        """
        model, rows = self.model.eval(), valid_data._dataset

        def batches() -> Iterator[prior_fitting.Batch]:
            for index in torch.arange(len(rows)).split(self.config["eval_batch_size"]):
                if not len(index):
                    continue
                batch = self._at_hand(rows)[index].to(self.device)
                lengths = batch[model.ITEM_SEQ_LEN]
                sequences = batch[model.ITEM_SEQ][:, : int(lengths.max())]
                scores = partial(_scores, model, sequences, lengths)
                yield scores, sequences, lengths, batch[model.ITEM_ID]

        choice = prior_fitting.fit_prior(model.prior, batches)
        if self.parallel:  # sums on a GPU may differ in the last bit, and with them a choice between equals
            for value in model.prior.state_dict().values():
                distributed.broadcast(value, 0)
        return choice


@contextmanager
def _products(precision: str) -> Iterator[None]:
    """Compute float32 matrix products with a precision while the block runs."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _scores(model: Any, sequences: Tensor, lengths: Tensor) -> Tensor:
    """Return the scores of all items, ``[B, N]``; -inf for excluded items of the history. Padding is item 0."""
    scores: Tensor = model.network.scores(sequences, lengths)
    return scores.scatter_(1, sequences, -torch.inf) if model.exclude_history else scores


def _is_full_ranking(eval_data: Any) -> bool:
    from recbole.data.dataloader import FullSortEvalDataLoader

    return isinstance(eval_data, FullSortEvalDataLoader)
