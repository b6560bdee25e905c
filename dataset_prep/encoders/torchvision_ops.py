"""Make torchvision importable beside a torch for which its binary operators were not built.

PyPI's torchvision for Linux is a CUDA build. Beside a CPU build of torch its operator library does not load. torchvision
ignores
that, but fails later while it registers two of these operators: `operator torchvision::nms does not exist`. Then neither
open_clip nor the model classes of transformers can be imported, although they call no such operator: they need only the
image transforms, which are plain Python.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any

CAUSE = "operator torchvision::nms does not exist"
_declared: list[Any] = []  # torch drops a declaration when its library object is deleted


def make_importable() -> bool:
    """Import torchvision; declare the missing operators if, and only if, the import fails because of them.

    Call this before open_clip or transformers are imported. The operators are declared without an implementation: torch
    raises an error if one is called. They are never declared in advance, because a working torchvision would then define
    them twice.

    Returns:
        Whether the operators were declared; ``False`` also if torchvision is not installed.

    Raises:
        RuntimeError: torchvision fails for another reason (other errors pass unchanged).
    """
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is None:
        return False
    try:
        importlib.import_module("torchvision")
        return False
    except RuntimeError as error:
        if CAUSE not in str(error):
            raise
    import torch

    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # modules that the failed import left
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)
    importlib.import_module("torchvision")
    return True
