"""recbole_qbert.recbole_integration.registry: a registered model is to RecBole what its own models are, in every process."""

from __future__ import annotations

import importlib
import inspect
import os
import pickle
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import recbole
import recbole.data.dataset
import recbole.trainer
import recbole.utils
import torch
from recbole.config import Config
from recbole.data.dataset import SequentialDataset
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.trainer import Trainer
from recbole.utils.argument_list import dataset_arguments

from recbole_qbert.recbole_integration import checkpoint_io, patches, registry
from recbole_qbert.recbole_integration.patches import quick_start

patches.apply()
checkpoint_io.apply()
registry.install()

ROOT = Path(__file__).resolve().parents[1]
PROPERTIES = """\
embedding_size: 8
loss_type: CE
train_neg_sample_args: ~
load_col: {inter: [user_id, item_id, timestamp]}
MAX_ITEM_LIST_LENGTH: 9
epochs: 7
toy_rows: true
toy_rate: 1e-3
"""


class ToyRec(SequentialRecommender):
    """The mean of the history's vectors against a table of items."""

    def __init__(self, config: Config, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.rows = config["toy_rows"]
        self.table = torch.nn.Embedding(self.n_items, config["embedding_size"], padding_idx=0)

    def full_sort_predict(self, interaction: Any) -> torch.Tensor:
        length = interaction[self.ITEM_SEQ_LEN].unsqueeze(-1)
        return self.table(interaction[self.ITEM_SEQ]).sum(1) / length @ self.table.weight.T

    def calculate_loss(self, interaction: Any) -> torch.Tensor:
        scores = self.full_sort_predict(interaction)
        return torch.nn.functional.cross_entropy(scores, interaction[self.ITEM_ID])

    def predict(self, interaction: Any) -> torch.Tensor:
        return self.full_sort_predict(interaction).gather(1, interaction[self.ITEM_ID][:, None])[:, 0]


class ToyRecDataset(SequentialDataset):
    """Found by its name."""


class ToyRecTrainer(Trainer):
    """Found by its name."""


@pytest.fixture(scope="module")
def properties(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("properties") / "ToyRec.yaml"
    path.write_text(PROPERTIES)
    return path


@pytest.fixture(scope="module", autouse=True)
def registered(properties: Path) -> None:
    registry.register(
        ToyRec,
        dataset=ToyRecDataset,
        trainer=ToyRecTrainer,
        properties=properties,
        dataset_arguments=("toy_rows",),
    )


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty folder with a data set of 24 users x 6 interactions, a bare command line, one thread."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["test"])
    monkeypatch.setattr(quick_start, "get_environment", lambda config: SimpleNamespace(draw=lambda: ""))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    write_toy(tmp_path)
    yield
    torch.set_num_threads(threads)
    patches.fresh_logging()


def write_toy(folder: Path) -> None:
    (folder / "data" / "toy").mkdir(parents=True)
    rows = [f"u{user}\ti{(user + 3 * step) % 12}\t{step}" for user in range(24) for step in range(6)]
    header = "user_id:token\titem_id:token\ttimestamp:float"
    (folder / "data" / "toy" / "toy.inter").write_text("\n".join([header, *rows]) + "\n")


def settings(**more: Any) -> dict[str, Any]:
    common = {"data_path": "data", "epochs": 1, "show_progress": False, "worker": 0, "gpu_id": "", "seed": 1}
    return {**common, "metrics": ["Hit", "NDCG"], "topk": [5], "valid_metric": "NDCG@5", **more}


def toy_config(**more: Any) -> Config:
    return Config(model="ToyRec", dataset="toy", config_dict=settings(**more))


# ------------------------------------------------------------------------------------------------ registering
def test_recbole_finds_the_classes_by_name() -> None:
    config = toy_config()
    assert recbole.utils.get_model("ToyRec") is ToyRec
    assert recbole.utils.get_trainer(config["MODEL_TYPE"], "ToyRec") is ToyRecTrainer
    assert type(recbole.data.create_dataset(config)) is ToyRecDataset
    assert ToyRec.__module__ == __name__, "a pickle of the class must import its real module"
    assert pickle.loads(pickle.dumps(ToyRec)) is ToyRec


def test_registering_twice_changes_nothing(properties: Path) -> None:
    before = list(dataset_arguments)
    registry.register(
        ToyRec,
        dataset=ToyRecDataset,
        trainer=ToyRecTrainer,
        properties=properties,
        dataset_arguments=("toy_rows",),
    )
    assert recbole.utils.get_model("ToyRec") is ToyRec
    assert dataset_arguments == before
    assert before.count("toy_rows") == 1


def test_registering_again_replaces_the_helpers(properties: Path) -> None:
    class Passing(SequentialRecommender):
        pass

    class PassingTrainer(Trainer):
        pass

    registry.register(Passing, trainer=PassingTrainer, properties=properties)
    assert recbole.trainer.PassingTrainer is PassingTrainer
    registry.register(Passing, properties=properties)
    assert not hasattr(recbole.trainer, "PassingTrainer")


@pytest.mark.parametrize(
    ("name", "module", "complaint"),
    [
        ("SASRec", "elsewhere", r"'SASRec'.*sequential_recommender/sasrec\.py"),
        ("BPr", "elsewhere", r"'BPr'.*bpr\.py"),
        ("LightGBM", "elsewhere", r"'LightGBM'.*lightgbm\.py"),
        ("ToyRec", "elsewhere", rf"'ToyRec'.*{__name__}\.ToyRec"),
        ("TOYREC", __name__, rf"'TOYREC'.*{__name__}\.ToyRec"),
        ("KG", "elsewhere", r"recbole\.trainer\.KGTrainer"),
        ("Sequential", "elsewhere", r"recbole\.data\.dataset\.SequentialDataset"),
    ],
)
def test_taken_names_are_refused(name: str, module: str, complaint: str, properties: Path) -> None:
    model = type(name, (SequentialRecommender,), {"__module__": module})
    modules, trainers = set(sys.modules), set(vars(recbole.trainer))
    with pytest.raises(ValueError, match=complaint):
        registry.register(model, properties=properties)
    assert (set(sys.modules), set(vars(recbole.trainer))) == (modules, trainers), "refused, yet written"
    assert recbole.utils.get_model("ToyRec") is ToyRec


def test_a_helper_of_another_name_owner_is_refused(properties: Path) -> None:
    model = type("KG", (SequentialRecommender,), {})
    with pytest.raises(ValueError, match="KGTrainer"):
        registry.register(model, trainer=type("KGTrainer", (Trainer,), {}), properties=properties)


def test_bad_property_files_are_refused_at_once(tmp_path: Path) -> None:
    model = type("Unlucky", (SequentialRecommender,), {})
    with pytest.raises(FileNotFoundError):
        registry.register(model, properties=tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    with pytest.raises(ValueError, match=r"list\.yaml.*list"):
        registry.register(model, properties=tmp_path / "list.yaml")


def test_a_changed_dataset_argument_is_not_answered_from_the_cache() -> None:
    built = recbole.data.create_dataset(toy_config(save_dataset=True))
    assert recbole.data.create_dataset(toy_config()).config["toy_rows"] is built.config["toy_rows"] is True
    assert recbole.data.create_dataset(toy_config(toy_rows=False)).config["toy_rows"] is False


# ------------------------------------------------------------------------------------------------- properties
def test_defaults_stand_between_recboles_and_the_users(tmp_path: Path) -> None:
    config = Config(model="ToyRec", dataset="toy", config_dict={"data_path": "data"})
    assert config["epochs"] == 7, "above overall.yaml"
    assert config["MAX_ITEM_LIST_LENGTH"] == 9, "above dataset/sample.yaml"
    assert config["load_col"] == {"inter": ["user_id", "item_id", "timestamp"]}
    assert config["toy_rate"] == 0.001, "numbers are read as RecBole reads them"
    assert config["learning_rate"] == 0.001, "RecBole's defaults stay"
    assert config["eval_args"]["split"] == {"LS": "valid_and_test"}, "those of the model type, too"

    (tmp_path / "mine.yaml").write_text("epochs: 3\nMAX_ITEM_LIST_LENGTH: 4\n")
    user = Config(model="ToyRec", dataset="toy", config_file_list=["mine.yaml"], config_dict=settings(epochs=2))
    assert (user["epochs"], user["MAX_ITEM_LIST_LENGTH"]) == (2, 4)


def test_what_recbole_ships_for_a_data_set_is_above_the_model() -> None:
    config = Config(model="ToyRec", dataset="ml-100k")
    assert config["load_col"] == {"inter": ["user_id", "item_id", "rating", "timestamp"]}
    assert config["epochs"] == 7


def test_a_class_may_be_given_instead_of_its_name() -> None:
    assert Config(model=ToyRec, dataset="toy", config_dict=settings())["toy_rows"] is True


def test_unknown_properties_are_refused_wherever_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"'toy_row'.*'toy_rows'.*config_dict"):
        toy_config(toy_row=False)
    (tmp_path / "mine.yaml").write_text("lerning_rate: 0.1\nqqqq: 1\n")
    with pytest.raises(ValueError, match=r"'lerning_rate'.*'learning_rate'.*'qqqq'"):
        Config(model="ToyRec", dataset="toy", config_file_list=["mine.yaml"])
    monkeypatch.setattr(sys, "argv", ["test", "--epoch=3", "--model=ToyRec", "--config_files=mine.yaml"])
    with pytest.raises(ValueError, match=r"'epoch'.*'epochs'.*command line.*clean_argv"):
        toy_config()
    with patches.clean_argv():
        assert toy_config()["epochs"] == 1


def test_recboles_own_properties_are_accepted() -> None:
    given = settings(
        alias_of_item_id=["item_id_list"],
        alias_of_relation_id=["whatever"],
        additional_feat_suffix=["feat"],
        preload_weight={"iid": "emb"},
        val_interval={"timestamp": "[0,9]"},
        benchmark_filename=None,
        eval_batch_size=64,
        tail_ratio=0.2,
        encoding="utf-8",
        wandb_project="x",
        transform="mask_itemseq",
        mask_ratio=0.5,
    )
    assert Config(model="ToyRec", dataset="toy", config_dict=given)["mask_ratio"] == 0.5
    assert vars(toy_config(mask_ratio=0.5))["unused_properties"] == ["mask_ratio"]  # it does nothing without transform


def test_one_configuration_serves_several_models_and_the_log_names_unused_keys_once(tmp_path: Path) -> None:
    columns = {"inter": ["user_id", "item_id", "timestamp"]}
    shared = settings(
        load_col=columns,
        loss_type="CE",
        n_layers=1,
        inner_size=8,
        num_layers=2,
        n_facet=3,
        train_neg_sample_args=None,
        epochs=1,
    )
    for model in ("GRU4Rec", "SASRec", "ToyRec"):
        result = quick_start.run_recbole(model=model, dataset="toy", config_dict=dict(shared))
        assert 0 <= result["test_result"]["hit@5"] <= 1
    (log,) = Path("log/ToyRec").glob("*.log")
    (line,) = [line for line in log.read_text().splitlines() if "does not use" in line]
    assert "n_facet" in line and "num_layers" in line and "learning_rate" not in line
    with pytest.raises(ValueError, match=r"n_facett.*n_facet"):
        toy_config(n_facett=1)


def test_baselines_keep_recboles_manners() -> None:
    config = Config(model="SASRec", dataset="toy", config_dict=settings(train_neg_sample_args=None, no_such_property=1))
    assert (config["toy_rows"], config["no_such_property"]) == (None, 1)


def test_every_key_of_recboles_common_code_is_known() -> None:
    """Guards the list of keys that stand in no YAML file."""
    package = Path(recbole.__file__).parent
    folders = ("config", "data", "evaluator", "sampler", "utils", "quick_start", "trainer")
    files = [file for folder in folders for file in (package / folder).rglob("*.py")]
    code = [file.read_text() for file in files if file.name != "hyper_tuning.py"]  # its config_dict is no Config
    read = {key for text in code for key in re.findall(r"config(?:_dict)?(?:\[|\.get\()\"(\w+)\"", text)}
    written = {key for text in code for key in re.findall(r"config(?:_dict)?\[\"(\w+)\"\] = ", text)}
    of_one_model = re.compile(
        r"(xgb|lgb)_|train_(rec|kg)_step|kge_interval|n_(enc|dec)_epochs|m_step|reg_weight|warm_up_step|"
        r"pretrain_epochs|save_step|convert_token_to_onehot|token_num_threshold|loss_type"
    )
    unknown = read - written - registry.known_properties("ToyRec") - registry._TRANSFORM_OPTIONS
    assert len(read) > 80
    assert {key for key in unknown if not of_one_model.match(key)} == set()


@pytest.mark.parametrize(
    ("names", "quoted"),
    [
        (["gama"], ["'gama'", "'gamma'"]),
        (["gamma", "zzz"], ["'zzz'"]),
        (["gama", "zzz"], ["'gama'", "'gamma'", "'zzz'"]),
        ([True], ["True"]),  # what YAML makes of 'yes:'
    ],
)
def test_check_keys(names: list[object], quoted: list[str]) -> None:
    registry.check_keys(["gamma", "beta"], {"gamma", "beta"}, "here")
    with pytest.raises(ValueError, match=r" here$") as raised:
        registry.check_keys(names, {"gamma", "beta"}, "here")
    assert re.findall(r"'\w+'|True", str(raised.value)) == quoted


# --------------------------------------------------------------------------------------------- unknown models
@pytest.mark.parametrize(
    ("name", "near"),
    [("ToyRek", "ToyRec"), ("toyrec", "ToyRec"), ("SASrec", "SASRec"), ("BERT4Rek", "BERT4Rec")],
)
def test_an_unknown_model_is_answered_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(ValueError, match=rf"{name!r}.*{near!r}"):
        Config(model=name, dataset="toy", config_dict=settings())


def test_a_model_that_exists_keeps_its_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "recbole.model.general_recommender.ncl", None)  # as if faiss were missing
    with pytest.raises(ImportError):
        Config(model="NCL", dataset="toy", config_dict=settings())


# ------------------------------------------------------------------------------------------------ whole runs
def test_run_recbole_beside_a_baseline() -> None:
    alone = quick_start.run_recbole("ToyRec", "toy", config_dict=settings(epochs=15, learning_rate=0.05))
    baseline = quick_start.run("SASRec", "toy", config_dict=settings(train_neg_sample_args=None, load_col={"inter": "*"}))
    again = quick_start.run("ToyRec", "toy", config_dict=settings(epochs=15, learning_rate=0.05))
    assert set(baseline["test_result"]) == {"hit@5", "ndcg@5"}
    assert alone["test_result"] == again["test_result"]
    # Users step through the items by threes: 3 rings of 4 items, and the next one is in the user's ring.
    assert alone["test_result"]["hit@5"] > 0.8


@pytest.mark.process
def test_tuning_with_hyperopt_in_this_process() -> None:
    pytest.importorskip("hyperopt")
    Path("fixed.yaml").write_text("\n".join(f"{key}: {value}" for key, value in settings().items() if value))
    Path("fixed.yaml").write_text(Path("fixed.yaml").read_text() + "\nmodel: ToyRec\ndataset: toy\n")
    for objective in (quick_start.objective_function, registry.objective_function):
        tuning = recbole.trainer.HyperTuning(
            objective,
            params_dict={"choice": {"toy_rows": [True, False]}},
            fixed_config_file_list=["fixed.yaml"],
        )
        tuning.run()
        assert len(tuning.params2result) == 2
        assert tuning.best_params["toy_rows"] in (True, False)


# -------------------------------------------------------------------------------------------- other processes
def test_install_is_idempotent() -> None:
    before = (Config._load_internal_config_dict, recbole.config.configurator.get_model)
    registry.install()
    assert (Config._load_internal_config_dict, recbole.config.configurator.get_model) == before
    assert quick_start.run_recboles is recbole.quick_start.run_recboles is registry.run_recboles


def test_a_reload_does_not_wrap_the_wrapper(properties: Path) -> None:
    importlib.reload(registry)
    assert registry._run_recboles.__module__ == "recbole.quick_start.quick_start"
    registry.install()
    registry.register(
        ToyRec,
        dataset=ToyRecDataset,
        trainer=ToyRecTrainer,
        properties=properties,
        dataset_arguments=("toy_rows",),
    )
    assert toy_config()["toy_rows"] is True


@pytest.mark.process
def test_what_goes_to_other_processes_names_the_plugin() -> None:
    """Unpickling imports what is named, and importing the package registers the models."""
    for sent in (quick_start.run_recboles, registry.objective_function):
        assert b"recbole_qbert.recbole_integration.registry" in pickle.dumps(sent)
    code = f"import pickle, sys; pickle.loads({pickle.dumps(quick_start.run_recboles)!r})\n" + (
        "import recbole.config\nassert 'recbole_qbert' in sys.modules\n"
        "from recbole_qbert.recbole_integration import registry; registry.install()\n"
        "assert hasattr(recbole.config.Config._load_internal_config_dict, '__wrapped__')"
    )
    run_python(code)


def run_python(code: str, *paths: Path) -> str:
    """The output of a fresh interpreter, as started by ``python -c``."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (*paths, ROOT))),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


GLOO = """\
# Imported by every interpreter at its start: process groups without a GPU. It knows nothing of the plugin.
import torch
import recbole.trainer.trainer as trainer
from recbole.config import Config
from torch.nn.parallel import DistributedDataParallel

def on_cpu(self):
    settings = self.final_config_dict
    settings.update(single_spec="local_rank" not in settings, device=torch.device("cpu"), gpu_id="")
    if settings["single_spec"]:
        settings["local_rank"] = 0
    else:
        torch.distributed.init_process_group(
            "gloo", rank=settings["local_rank"], world_size=settings["world_size"],
            init_method="tcp://localhost:" + str(settings["port"]),
        )

Config._init_device = on_cpu
trainer.DistributedDataParallel = lambda model, device_ids: DistributedDataParallel(model)
"""


@pytest.mark.process
@pytest.mark.slow
def test_two_processes_started_without_a_main_file(tmp_path: Path) -> None:
    """run(nproc=2) under ``python -c``: nothing but the plugin's function leads the children to the model."""
    package = tmp_path / "path" / "recbole_qbert"
    shutil.copytree(ROOT / "recbole_qbert", package)
    package.joinpath("ToyRec.yaml").write_text(PROPERTIES)
    model = "import torch\nfrom typing import Any\nfrom recbole.config import Config\n" + textwrap.dedent(
        "from recbole.model.abstract_recommender import SequentialRecommender\n" + inspect.getsource(ToyRec)
    )
    package.joinpath("toy.py").write_text(model)
    package.joinpath("__init__.py").write_text(
        "from pathlib import Path\nfrom recbole_qbert.recbole_integration import checkpoint_io, patches, registry\n"
        "from recbole_qbert.toy import ToyRec\n"
        "patches.apply()\ncheckpoint_io.apply()\nregistry.install()\n"
        "registry.register(ToyRec, properties=Path(__file__).with_name('ToyRec.yaml'))\n"
    )
    package.parent.joinpath("sitecustomize.py").write_text(GLOO)
    port = 20000 + os.getpid() % 20000
    out = run_python(
        "from recbole.quick_start import run\nimport recbole_qbert, glob\n"
        "from recbole_qbert.recbole_integration import checkpoint_io\n"
        f"result = run('ToyRec', 'toy', config_dict={settings(epochs=2)!r}, nproc=2, port='{port}')\n"
        "assert 0 <= result['test_result']['hit@5'] <= 1\n"
        "file, = glob.glob('saved/ToyRec-*.pth')\n"
        "config, model, dataset, *loaders = checkpoint_io.load_data_and_model(file)\n"
        "print('read by one process:', config['single_spec'], type(model).__module__)",
        package.parent,
    )
    assert "read by one process: True recbole_qbert.toy" in out
