"""Semantic-ID sequential recommendation on RecBole: Q-BERT4Rec.

Importing the package registers ``QBERT4Rec``, and the baselines ``CooccurrenceKNN``, ``VQRec``, ``MISSRec``, ``TIGER``,
``MQL4GRec``, ``P5CID`` and ``VIP5``, with RecBole, so that ``run_recbole(model="QBERT4Rec", ...)`` works. Without RecBole
only the functions that do not need it work: recommending with an exported model.

Every command of the command line is a function here: ``train``, ``pretrain``, ``finetune``, ``build_semantic_ids``,
``add_items``, ``export_model``, ``recommend``.

Shape letters, the same everywhere: ``B`` users (or items) in a batch, ``L`` positions, ``N`` items, ``K`` code levels, ``M``
codes per level, ``D`` width, ``J`` feature vectors per item and modality.
"""

import os
from importlib.util import find_spec

# Set before torch is loaded: how many turns of a loop torch's threads spin while they wait for each other. With the default
# (300,000) a step of a small network takes ten times as long on a machine that runs anything else. Without spinning two
# threads are slower than one (docs/performance.md). A policy that the user has set stays.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")

from recbole_qbert.serving.add_items import add_items
from recbole_qbert.serving.export import export_model
from recbole_qbert.serving.recommend_file import recommend
from recbole_qbert.serving.recommender import Recommender
from recbole_qbert.version import __version__

if find_spec("recbole") is None:

    def __getattr__(name: str) -> object:
        if name in __all__:
            raise ImportError(
                f"recbole_qbert.{name} needs RecBole, which is not installed: pip install recbole==1.2.1 "
                "(from Python 3.12 on: pip install --no-deps recbole==1.2.1)"
            )
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

else:
    from recbole_qbert.config.baseline_schema import check_missrec, check_vqrec
    from recbole_qbert.config.generative import MQL4GRecConfig, TIGERConfig, checker
    from recbole_qbert.config.property_files import property_file
    from recbole_qbert.config.schema import QuantizerConfig, check_all
    from recbole_qbert.config.sentences import CollaborativeConfig, NumberConfig, SentenceConfig, VIP5Config
    from recbole_qbert.recbole_integration import checkpoint_io, patches, registry

    patches.apply()
    checkpoint_io.apply()
    registry.install()

    # After the patches, because these modules import RecBole's trainer and model classes.
    from recbole_qbert.models.cooccurrence_knn import CooccurrenceKNN, CooccurrenceKNNTrainer
    from recbole_qbert.models.missrec import MISSRec
    from recbole_qbert.models.mql4grec import MQL4GRec
    from recbole_qbert.models.p5cid import P5CID
    from recbole_qbert.models.qbert4rec import QBERT4Rec
    from recbole_qbert.models.tiger import TIGER
    from recbole_qbert.models.vip5 import VIP5
    from recbole_qbert.models.vqrec import VQRec
    from recbole_qbert.recbole_integration.attribute_dataset import AttributeDataset
    from recbole_qbert.recbole_integration.code_dataset import CodeDataset
    from recbole_qbert.recbole_integration.dataset import HistoryDataset, QBERT4RecDataset
    from recbole_qbert.recbole_integration.feature_datasets import PrefixFeatureDataset, ProductCodeDataset
    from recbole_qbert.recbole_integration.generative_trainer import GenerativeTrainer
    from recbole_qbert.recbole_integration.scoring_trainer import ScoringTrainer
    from recbole_qbert.recbole_integration.sentence_datasets import CollaborativeIDDataset, PictureDataset
    from recbole_qbert.recbole_integration.trainer import QBERT4RecTrainer
    from recbole_qbert.recbole_integration.workflows import build_semantic_ids, finetune, pretrain, train

    registry.register(
        QBERT4Rec,
        dataset=QBERT4RecDataset,
        trainer=QBERT4RecTrainer,
        properties=property_file("model/QBERT4Rec.yaml"),
        reset_on_load={"pretrained": None, "rebuild": False, "code_init": "random"},
        check_values=check_all,
    )
    registry.register(
        CooccurrenceKNN,
        dataset=HistoryDataset,
        trainer=CooccurrenceKNNTrainer,
        properties=property_file("model/CooccurrenceKNN.yaml"),
    )
    registry.register(
        VQRec,
        dataset=ProductCodeDataset,
        trainer=ScoringTrainer,
        properties=property_file("model/VQRec.yaml"),
        reset_on_load={"pretrained": None, "rebuild": False},
        check_values=check_vqrec,
    )
    registry.register(
        MISSRec,
        dataset=PrefixFeatureDataset,
        trainer=ScoringTrainer,
        properties=property_file("model/MISSRec.yaml"),
        reset_on_load={"rebuild": False},
        check_values=check_missrec,
    )
    for _model, _dataset, _settings in (
        (TIGER, CodeDataset, (TIGERConfig, QuantizerConfig)),
        (MQL4GRec, CodeDataset, (MQL4GRecConfig, QuantizerConfig)),
        (P5CID, CollaborativeIDDataset, (SentenceConfig, CollaborativeConfig)),
        (VIP5, PictureDataset, (VIP5Config, NumberConfig)),
    ):
        registry.register(
            _model,
            dataset=_dataset,
            trainer=GenerativeTrainer,
            properties=property_file(f"model/{_model.__name__}.yaml"),
            reset_on_load={"rebuild": False},
            check_values=checker(*_settings),
        )
    registry.use_dataset(["FDSA", "S3Rec"], AttributeDataset, dataset_arguments=["attribute_min_items"])

    load_data_and_model = checkpoint_io.load_data_and_model
    objective_function = registry.objective_function

__all__ = [
    "P5CID",
    "TIGER",
    "VIP5",
    "CooccurrenceKNN",
    "MISSRec",
    "MQL4GRec",
    "QBERT4Rec",
    "QBERT4RecDataset",
    "QBERT4RecTrainer",
    "Recommender",
    "VQRec",
    "__version__",
    "add_items",
    "build_semantic_ids",
    "export_model",
    "finetune",
    "load_data_and_model",
    "objective_function",
    "pretrain",
    "recommend",
    "train",
]
