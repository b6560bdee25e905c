"""Semantic-ID sequential recommendation on RecBole: Q-BERT4Rec.

Importing the package registers ``QBERT4Rec``, and the baseline ``CooccurrenceKNN``, with RecBole, so that
``run_recbole(model="QBERT4Rec", ...)`` works. Without RecBole there is what does not need it: ``Recommender`` over an
exported model.

Shape letters, the same everywhere: ``B`` users (or items) in a batch, ``L`` positions, ``N`` items, ``K`` code levels, ``M``
codes per level, ``D`` width, ``J`` feature vectors per item and modality.
"""

import os
from importlib.util import find_spec

# Before torch is loaded: how long its threads spin while they wait for each other, in turns of a loop. By default (300,000),
# on a machine that has anything else to do, a step of a small network takes ten times as long; with no spinning at all two
# threads are slower than one (docs/speed.md). Whoever has set OMP_WAIT_POLICY is left alone.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")

from recbole_qbert.recommender import Recommender

if find_spec("recbole") is None:

    def __getattr__(name: str) -> object:
        if name in __all__:
            raise ImportError(f"recbole_qbert.{name} takes RecBole, which is not installed: pip install recbole==1.2.1")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

else:
    from recbole_qbert import checkpoints, compat, plugin
    from recbole_qbert.paths import properties

    compat.apply()
    checkpoints.apply()
    plugin.install()

    # After the shims: these import RecBole's trainer and model classes.
    from recbole_qbert.attributes import AttributeDataset
    from recbole_qbert.dataset import QBERT4RecDataset
    from recbole_qbert.models.cooccurrence_knn import CooccurrenceKNN, CooccurrenceKNNTrainer
    from recbole_qbert.models.qbert4rec import QBERT4Rec
    from recbole_qbert.trainer import QBERT4RecTrainer

    plugin.register(
        QBERT4Rec,
        dataset=QBERT4RecDataset,
        trainer=QBERT4RecTrainer,
        properties=properties("model/QBERT4Rec.yaml"),
    )
    plugin.register(
        CooccurrenceKNN,
        dataset=QBERT4RecDataset,
        trainer=CooccurrenceKNNTrainer,
        properties=properties("model/CooccurrenceKNN.yaml"),
    )
    plugin.use_dataset(["FDSA", "S3Rec"], AttributeDataset)

    load_data_and_model = checkpoints.load_data_and_model
    objective_function = plugin.objective_function

__version__ = "0.1.0"
__all__ = [
    "CooccurrenceKNN",
    "QBERT4Rec",
    "QBERT4RecDataset",
    "QBERT4RecTrainer",
    "Recommender",
    "load_data_and_model",
    "objective_function",
]
