"""torchvision beside a torch that its binary operators were not built for.

PyPI's torchvision for Linux is a CUDA build. Beside a CPU build of torch its library of operators does not load, which
torchvision takes quietly, only to fail a moment later while it describes two of them: `operator torchvision::nms does not
exist`. open_clip cannot be imported then, nor the model classes of transformers, although neither calls such an operator:
they want the image transforms, which are plain Python.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any

CAUSE = "operator torchvision::nms does not exist"
_declared: list[Any] = []  # torch forgets a declaration when its library object dies


def make_importable() -> bool:
    """Import torchvision, declaring the operators it lacks if, and only if, it fails for want of them.

    Call it before open_clip or transformers are imported. The operators are declared without any code: whoever calls one is
    told so by torch. They are never declared first, since a torchvision that works would then define them twice.

    Returns:
        Whether they had to be declared; ``False`` also where torchvision is not installed.

    Raises:
        RuntimeError: torchvision fails for another reason (as do other errors, unchanged).
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
        del sys.modules[name]  # what the failed import left behind
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)
    importlib.import_module("torchvision")
    return True
