"""AdamW with warm-up, which updates a large embedding only where it has a gradient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor


class WarmupAdamW(torch.optim.AdamW):
    """AdamW whose learning rate rises linearly over the first steps.

    The number of steps is part of the parameter groups, so that it is saved and resumed with them.

    Of a parameter with a sparse gradient (``loss: sampled``), a step changes the rows that the gradient has: their moments,
    their weights, their decay. Others stay as they are, so that a step does not grow with the catalog. Where all rows
    have a gradient in every step, it is AdamW.
    """

    def __init__(self, groups: Any, *, lr: float, betas: tuple[float, float], warmup_steps: int) -> None:
        super().__init__(groups, lr=lr, betas=betas, fused=True)  # one pass over each parameter instead of about ten
        for group in self.param_groups:
            group["full_lr"], group["warmup_steps"], group["taken"] = lr, warmup_steps, 0

    def load_state_dict(self, state_dict: Any) -> None:
        """Load a state. Older states were not fused, which this optimizer always is."""
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            group["fused"] = True

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update the parameters at the learning rate of the warm-up."""
        by_row = []
        found_inf = getattr(self, "found_inf", None)  # set by a gradient scaler, which leaves such a step out
        is_finite = found_inf is None or not bool(found_inf)
        for group in self.param_groups:
            group["taken"] += 1
            group["lr"] = group["full_lr"] * self.share_of_rate(group)
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    if is_finite:
                        self._update_rows(group, parameter, parameter.grad.coalesce())
                    by_row.append((parameter, parameter.grad))
                    parameter.grad = None  # torch's step leaves it out
        result = super().step(closure)
        for parameter, gradient in by_row:
            parameter.grad = gradient
        return result

    def share_of_rate(self, group: Mapping[str, Any]) -> float:
        """Return the share of the learning rate at the step that a parameter group has come to."""
        return min(1.0, group["taken"] / max(group["warmup_steps"], 1))

    def _update_rows(self, group: Mapping[str, Any], parameter: Tensor, gradient: Tensor) -> None:
        """Update the rows of ``parameter [N, D]`` that the sparse ``gradient`` has."""
        rows, values = gradient.indices()[0], gradient.values()
        state = self.state[parameter]
        if not state:  # the names of torch's AdamW, so that states are saved and loaded alike
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        taken, (first, second) = float(state["step"]), group["betas"]
        mean = state["exp_avg"][rows].lerp_(values, 1 - first)
        square = state["exp_avg_sq"][rows].mul_(second).addcmul_(values, values, value=1 - second)
        state["exp_avg"][rows], state["exp_avg_sq"][rows] = mean, square
        change = mean / (square / (1 - second**taken)).sqrt_().add_(group["eps"])
        decayed = parameter[rows] * (1 - group["lr"] * group["weight_decay"])
        parameter[rows] = decayed.sub_(change, alpha=group["lr"] / (1 - first**taken))


def stored_gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    """List parameters that have a gradient, each sparse one replaced by a stand-in whose gradient is the stored rows.

    The stand-in shares them, so that clipping or summing its gradient does so to the parameter's. A sparse gradient has no
    row twice here: the network looks up every candidate once.
    """
    stored = []
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is not None and gradient.is_sparse:
            stand_in = torch.empty_like(gradient._values())
            stand_in.grad = gradient._values()
            stored.append(stand_in)
        elif gradient is not None:
            stored.append(parameter)
    return stored
