"""What every index of ``topk`` shares: the questions it answers, and their reading and refusing."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from recbole_qbert.retrieval.torch_backend import Changes, ChunkedItems

MOST_ITEMS = (1 << 31) - 1  # rows are kept as int32
LARGEST = 3e38  # what the parts of a score may add up to; beyond it float32 sums become inf, and inf - inf no number


class Backend(Protocol):
    """One way to answer; what it is handed has been checked and lies on its device."""

    @property
    def nbytes(self) -> int:
        """Bytes held for the catalog."""

    def top_k(self, queries: Tensor, k: int, changes: Changes, threads: int) -> tuple[Tensor, Tensor]:
        """``(scores, rows)``, both ``[B, k]``, for ``1 <= k <= N``."""

    def rank(self, queries: Tensor, target: Tensor, changes: Changes, threads: int) -> Tensor:
        """``[B]`` int64."""


class Index:
    """A catalog of ``N`` items that is asked for the best items of users and for ranks.

    Args:
        items: ``N``.
        device: where the catalog lies; questions are moved there, answers stay there.
        bias: ``[N]`` float or None.
        valid: ``[N]`` bool or None.
    """

    backend: Backend
    chunked: ChunkedItems

    def __init__(self, items: int, device: torch.device, bias: Tensor | None, valid: Tensor | None) -> None:
        if items > MOST_ITEMS:
            raise ValueError(f"{items} items are more than the {MOST_ITEMS} that an index can hold")
        if bias is not None and bias.shape != (items,):
            raise ValueError(f"bias has shape {tuple(bias.shape)}; it must be one number for each of {items} items")
        if valid is not None and (valid.shape != (items,) or valid.dtype != torch.bool):
            raise ValueError(f"valid is {valid.dtype} {tuple(valid.shape)}; it must be bool, one for each of {items} items")
        self.items, self.device = items, device
        self.bias = None if bias is None else bias.detach().to(device, torch.float32)
        self.valid = None if valid is None else valid.to(device)
        self._bias_size = 0.0 if self.bias is None else largest(self.bias[None], "bias")

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
        """The ``k`` best items of each user, best first.

        Args:
            queries: what the users are described by, any float type; computed with as float32.
            k: how many, 0 or more.
            exclude: ``[B, X]`` int64 item rows that are no answer for the user; -1 in unused places.
            adjust: items ``[B, H]`` (-1 in unused places) and what is added to their scores, ``[B, H]`` or one number:
                ``(history, -penalty)``. An item that stands in a row several times, here and in ``exclude`` together,
                counts once, with its lowest amount.
            allowed: answers come from these items only: ``[N]`` bool, or item rows ``[A]``.
            threads: how many share the users of the call (compiled methods only; one user takes one thread).

        Returns:
            ``(scores [B, k] float32, items [B, k] int64)``; -inf and -1 where fewer than ``k`` items can be answers.

        Raises:
            ValueError: shapes do not fit, a row is not in the catalog, or a number is NaN, +inf or so large that scores
                would not be finite.
        """
        if k < 0:
            raise ValueError(f"k is {k}; it must be 0 or more")
        queries, changes = self._read(queries, exclude, adjust, allowed)
        most = min(k, self.items)
        scores = torch.full((len(queries), k), -torch.inf, device=self.device)
        items = torch.full((len(queries), k), -1, device=self.device)
        if most and len(queries):
            scores[:, :most], items[:, :most] = self.backend.top_k(queries, most, changes, threads)
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
        """Rank of each user's target among all items, counted from 1, ties against the model (``ranking.rank_of``).

        Args:
            queries, exclude, adjust, allowed, threads: as for :meth:`top_k`.
            target: ``[B]`` int64 item rows.

        Returns:
            ``[B]`` int64; ``N`` for a target that can be no answer.

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
        """``log(sum_i exp(score_i))`` of each user over the items that can be answers: what makes logits log-probabilities.

        Computed a chunk of items at a time whatever the method; rounded as torch likes.

        Args:
            queries, adjust, allowed: as for :meth:`top_k`.

        Returns:
            ``[B]`` float32.
        """
        queries, changes = self._read(queries, None, adjust, allowed)
        return self.chunked.log_sum_exp(queries, changes)

    @property
    def nbytes(self) -> int:
        """Bytes held for the catalog, but for a few that do not grow with it."""
        return self.backend.nbytes

    def _queries(self, queries: Tensor) -> tuple[Tensor, float]:
        """The checked queries on the device of the index, and the largest magnitude of a score that they can give."""
        raise NotImplementedError

    def _read(
        self,
        queries: Tensor,
        exclude: Tensor | None,
        adjust: tuple[Tensor, Tensor | float] | None,
        allowed: Tensor | None,
    ) -> tuple[Tensor, Changes]:
        queries, size = self._queries(queries)
        given = {"exclude": None if exclude is None else (exclude, -torch.inf), "adjust": adjust}
        rows = torch.empty(len(queries), 0, dtype=torch.int64, device=self.device)
        amounts = torch.empty(len(queries), 0, device=self.device)
        for name, (some, amount) in ((name, pair) for name, pair in given.items() if pair is not None):
            some = self._rows(some, name)
            if some.dim() != 2 or len(some) != len(queries):
                raise ValueError(
                    f"{name} has shape {tuple(some.shape)}; it must be [{len(queries)}, H], -1 in unused places"
                )
            amount = torch.as_tensor(amount, dtype=torch.float32, device=self.device).detach()
            if amount.dim() and amount.shape not in (some.shape, (len(some), 1)):
                raise ValueError(f"{name} adds amounts {tuple(amount.shape)} to items {tuple(some.shape)}")
            amount = amount.expand(some.shape)
            size += largest(amount[None], name)
            rows, amounts = torch.cat([rows, some], 1), torch.cat([amounts, amount], 1)
        if size + self._bias_size > LARGEST:
            raise ValueError(
                f"scores can be as large as {size + self._bias_size:.3g}, too large for float32; scale them down"
            )
        if allowed is not None and allowed.dtype != torch.bool:
            allowed = self._rows(allowed, "allowed").unique()
            allowed = allowed[allowed >= 0]
        elif allowed is not None and allowed.shape != (self.items,):
            raise ValueError(f"allowed is bool {tuple(allowed.shape)}; it must be one for each of {self.items} items")
        return queries, Changes(*once(rows, amounts), None if allowed is None else allowed.to(self.device))

    def _rows(self, rows: Tensor, name: str) -> Tensor:
        if rows.is_floating_point() or rows.dtype == torch.bool:
            raise ValueError(f"{name} is {rows.dtype}; item rows are integers")
        if rows.numel() and not (int(rows.min()) >= -1 and int(rows.max()) < self.items):
            raise ValueError(f"{name} spans [{int(rows.min())}, {int(rows.max())}]; the item rows are 0 to {self.items - 1}")
        return rows.to(self.device, torch.int64)


def once(rows: Tensor, amounts: Tensor) -> tuple[Tensor, Tensor]:
    """Sort each user's item rows and keep each once, with its lowest amount; the places that become free (-1) come first."""
    if rows.shape[1] < 2:
        return rows, amounts
    amounts, order = amounts.sort(1)
    rows, again = rows.gather(1, order).sort(dim=1, stable=True)
    amounts = amounts.gather(1, again)
    rows = torch.cat([rows[:, :1], rows[:, 1:].masked_fill(rows[:, 1:] == rows[:, :-1], -1)], 1)
    rows, order = rows.sort(dim=1, stable=True)
    return rows, amounts.gather(1, order)


def largest(values: Tensor, name: str) -> float:
    """Sum over the first dimension of the largest magnitude in the others, -inf counting as 0.

    Raises:
        ValueError: NaN or +inf is among them.
    """
    if not values.numel():
        return 0.0
    size = float(values.masked_fill(values == -torch.inf, 0.0).abs().flatten(1).amax(1).double().sum())
    if not size < torch.inf:
        raise ValueError(f"{name} holds NaN or +inf; scores are finite, or -inf for what can be no answer")
    return size
