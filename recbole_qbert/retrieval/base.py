"""Base class of the indexes: their methods, and the checks of arguments."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from recbole_qbert.retrieval.torch_backend import Changes, ChunkedItems

MAX_ITEMS = (1 << 31) - 1  # rows are stored as int32
MAX_SCORE = 3e38  # largest sum of the parts of a score; beyond it float32 sums become inf, and inf - inf is NaN


class Backend(Protocol):
    """One implementation of an index; its arguments are checked and on its device."""

    @property
    def nbytes(self) -> int:
        """Bytes of the catalog in memory."""

    def top_k(self, queries: Tensor, k: int, changes: Changes, threads: int) -> tuple[Tensor, Tensor]:
        """Find the best items.

        Args:
            queries, k, threads: as for :meth:`Index.top_k`, with ``1 <= k <= N``.
            changes: changes of scores.

        Returns:
            ``(scores, rows)``, both ``[B, k]``.
        """

    def rank(self, queries: Tensor, target: Tensor, changes: Changes, threads: int) -> Tensor:
        """Rank targets.

        Args:
            queries, target, threads: as for :meth:`Index.rank`.
            changes: changes of scores.

        Returns:
            ``[B]`` int64.
        """


class Index:
    """A catalog of ``N`` items, searched for the best items of users and for ranks.

    Args:
        items: ``N``.
        device: device of the catalog; queries are moved there, results stay there.
        bias: ``[N]`` float added to the scores, or None.
        valid: ``[N]`` bool, items that can be recommended; all when None.

    Raises:
        ValueError: too many items, or a tensor of another shape or type.
    """

    backend: Backend
    chunked: ChunkedItems

    def __init__(self, items: int, device: torch.device, bias: Tensor | None, valid: Tensor | None) -> None:
        if items > MAX_ITEMS:
            raise ValueError(f"{items} items are more than the {MAX_ITEMS} that an index can hold")
        if bias is not None and bias.shape != (items,):
            raise ValueError(f"bias has shape {tuple(bias.shape)}; it must be one number for each of {items} items")
        if valid is not None and (valid.shape != (items,) or valid.dtype != torch.bool):
            raise ValueError(f"valid is {valid.dtype} {tuple(valid.shape)}; it must be bool, one for each of {items} items")
        self.items, self.device = items, device
        self.bias = None if bias is None else bias.detach().to(device, torch.float32)
        self.valid = None if valid is None else valid.to(device)
        self._bias_size = 0.0 if self.bias is None else max_magnitude(self.bias[None], "bias")

    def top_k(
        self,
        queries: Tensor,
        k: int,
        *,
        exclude: Tensor | None = None,
        adjust: tuple[Tensor, Tensor | float] | None = None,
        allowed: Tensor | None = None,
        threads: int = 1,
    ) -> tuple[Tensor, Tensor]:
        """Find the ``k`` best items of each user, best first.

        Args:
            queries: description of the users, any float type; computations are in float32.
            k: number of items, 0 or more.
            exclude: ``[B, X]`` int64 item rows that are not recommended to the user, padded with -1.
            adjust: item rows ``[B, H]``, padded with -1, and the amounts added to their scores, ``[B, H]`` or one number:
                ``(history, -penalty)``. An item that occurs several times in a row of ``adjust`` and ``exclude`` together
                counts once, with its lowest amount.
            allowed: items to choose from: ``[N]`` bool, or item rows ``[A]``; all when None.
            threads: number of threads, among which the users are divided (compiled methods only).

        Returns:
            ``(scores [B, k] float32, items [B, k] int64)``; -inf and -1 where fewer than ``k`` items remain.

        Raises:
            ValueError: shapes do not fit, a row is not in the catalog, or a number is NaN, +inf or so large that scores
                would not be finite.
        """
        if k < 0:
            raise ValueError(f"k is {k}; it must be 0 or more")
        queries, changes = self._read(queries, exclude, adjust, allowed)
        count = min(k, self.items)
        scores = torch.full((len(queries), k), -torch.inf, device=self.device)
        items = torch.full((len(queries), k), -1, device=self.device)
        if count and len(queries):
            scores[:, :count], items[:, :count] = self.backend.top_k(queries, count, changes, threads)
        return scores, items

    def rank(
        self,
        queries: Tensor,
        target: Tensor,
        *,
        exclude: Tensor | None = None,
        adjust: tuple[Tensor, Tensor | float] | None = None,
        allowed: Tensor | None = None,
        threads: int = 1,
    ) -> Tensor:
        """Rank each user's target among all items, counting from 1, ties against the model (as ``scoring.rank_of``).

        Args:
            queries, exclude, adjust, allowed, threads: as for :meth:`top_k`.
            target: ``[B]`` int64 item rows.

        Returns:
            ``[B]`` int64; ``N`` for a target that cannot be recommended.

        Raises:
            ValueError: as for :meth:`top_k`.
        """
        queries, changes = self._read(queries, exclude, adjust, allowed)
        target = self._rows(target, "target")
        if target.shape != (len(queries),) or bool((target < 0).any()):
            raise ValueError(
                f"target has shape {tuple(target.shape)}; it must be one item row for each of {len(queries)} users"
            )
        return self.backend.rank(queries, target, changes, threads)

    def log_sum_exp(
        self, queries: Tensor, *, adjust: tuple[Tensor, Tensor | float] | None = None, allowed: Tensor | None = None
    ) -> Tensor:
        """Compute ``log(sum_i exp(score_i))`` over the items that can be recommended, which normalises logits.

        Computed by torch, one chunk of items at a time, whatever the method.

        Args:
            queries, adjust, allowed: as for :meth:`top_k`.

        Returns:
            ``[B]`` float32.
        """
        queries, changes = self._read(queries, None, adjust, allowed)
        return self.chunked.log_sum_exp(queries, changes)

    @property
    def nbytes(self) -> int:
        """Bytes of the catalog in memory, without the few that do not grow with it."""
        return self.backend.nbytes

    def _queries(self, queries: Tensor) -> tuple[Tensor, float]:
        """Return the checked queries on the device of the index, and the largest magnitude of their scores."""
        raise NotImplementedError

    def _read(
        self,
        queries: Tensor,
        exclude: Tensor | None,
        adjust: tuple[Tensor, Tensor | float] | None,
        allowed: Tensor | None,
    ) -> tuple[Tensor, Changes]:
        queries, size = self._queries(queries)
        changes = {"exclude": None if exclude is None else (exclude, -torch.inf), "adjust": adjust}
        rows = torch.empty(len(queries), 0, dtype=torch.int64, device=self.device)
        amounts = torch.empty(len(queries), 0, device=self.device)
        for name, (changed, amount) in ((name, pair) for name, pair in changes.items() if pair is not None):
            changed = self._rows(changed, name)
            if changed.dim() != 2 or len(changed) != len(queries):
                raise ValueError(f"{name} has shape {tuple(changed.shape)}; it must be [{len(queries)}, H], padded with -1")
            amount = torch.as_tensor(amount, dtype=torch.float32, device=self.device).detach()
            if amount.dim() and amount.shape not in (changed.shape, (len(changed), 1)):
                raise ValueError(f"{name} adds amounts {tuple(amount.shape)} to items {tuple(changed.shape)}")
            amount = amount.expand(changed.shape)
            size += max_magnitude(amount[None], name)
            rows, amounts = torch.cat([rows, changed], 1), torch.cat([amounts, amount], 1)
        if size + self._bias_size > MAX_SCORE:
            raise ValueError(
                f"scores can be as large as {size + self._bias_size:.3g}, too large for float32; scale them down"
            )
        if allowed is not None and allowed.dtype != torch.bool:
            allowed = self._rows(allowed, "allowed").unique()
            allowed = allowed[allowed >= 0]
        elif allowed is not None and allowed.shape != (self.items,):
            raise ValueError(f"allowed is bool {tuple(allowed.shape)}; it must be one for each of {self.items} items")
        return queries, Changes(*unique_rows(rows, amounts), None if allowed is None else allowed.to(self.device))

    def _rows(self, rows: Tensor, name: str) -> Tensor:
        if rows.is_floating_point() or rows.dtype == torch.bool:
            raise ValueError(f"{name} is {rows.dtype}; item rows are integers")
        if rows.numel() and not (int(rows.min()) >= -1 and int(rows.max()) < self.items):
            raise ValueError(f"{name} spans [{int(rows.min())}, {int(rows.max())}]; the item rows are 0 to {self.items - 1}")
        return rows.to(self.device, torch.int64)


def unique_rows(rows: Tensor, amounts: Tensor) -> tuple[Tensor, Tensor]:
    """Sort each user's item rows and keep each once, with its lowest amount; unused entries (-1) come first."""
    if rows.shape[1] < 2:
        return rows, amounts
    amounts, order = amounts.sort(1)
    rows, order = rows.gather(1, order).sort(dim=1, stable=True)
    amounts = amounts.gather(1, order)
    rows = torch.cat([rows[:, :1], rows[:, 1:].masked_fill(rows[:, 1:] == rows[:, :-1], -1)], 1)
    rows, order = rows.sort(dim=1, stable=True)
    return rows, amounts.gather(1, order)


def max_magnitude(values: Tensor, name: str) -> float:
    """Sum over the first dimension the largest magnitude in the others, -inf counting as 0.

    Raises:
        ValueError: NaN or +inf is among them.
    """
    if not values.numel():
        return 0.0
    size = float(values.masked_fill(values == -torch.inf, 0.0).abs().flatten(1).amax(1).double().sum())
    if not size < torch.inf:
        raise ValueError(f"{name} holds NaN or +inf; scores are finite, or -inf for items that cannot be recommended")
    return size
