"""Registration of models with RecBole.

RecBole 1.2.1 has no entry points. It imports a model from ``recbole.model.<kind>.<name in lower case>``, reads its defaults
from a YAML file inside its own package, and looks for its Dataset and Trainer classes under the names ``<Model>Dataset`` and
``<Model>Trainer``. :func:`register` puts a class where RecBole looks. :func:`install` makes ``Config`` read defaults from
outside the package, and makes the child processes of ``run(nproc=2)`` import this plugin. Both may be called any number of
times. RecBole's own models work as before, in the same process.

Changed in RecBole: ``Config._load_internal_config_dict``, ``_load_config_files``, ``_convert_config_dict`` and
``_load_cmd_line``, ``quick_start.run_recboles`` and the name
``get_model`` inside ``recbole.config.configurator``. ``tests/test_registry.py`` fails when one of them changes.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import recbole
import recbole.config.configurator as configurator
import recbole.data.dataset
import recbole.trainer
import recbole.utils.argument_list as argument_list
from recbole.evaluator.register import metric_types

from recbole_qbert.config.property_files import read_properties
from recbole_qbert.config.property_values import OF_RECBOLE, check_evaluation
from recbole_qbert.config.schema import with_current_names
from recbole_qbert.config.value_checks import check, shown
from recbole_qbert.data.atomic_files import AtomicFormat
from recbole_qbert.recbole_integration.patches import arrays_without_pickle, quick_start, replace
from recbole_qbert.utils.spelling import did_you_mean

_RECBOLE = Path(recbole.__file__).parent
_KINDS = ("general", "context_aware", "sequential", "knowledge_aware", "exlib")
#: Keys that RecBole reads although none of its YAML files or argument lists has them (tests/test_registry.py searches its
#: code for them), and the flags of its scripts, which Config sees in sys.argv.
_UNLISTED = frozenset(
    """model dataset config_files encoding verbose tail_ratio neg_sampling training_neg_sample_num
    valid_neg_sample_args test_neg_sample_args
    local_rank world_size nproc ip port offset group_offset
    params_file output_file display_file tool model_ours model_baseline st_seed run_times""".split()
)
#: Metrics that are not cut at ``topk``.
_NOT_CUT = ("gauc", "auc", "mae", "rmse", "logloss")
#: Options of RecBole's built-in ``transform`` (data/transform.py). Without that key they have no effect.
_TRANSFORM_OPTIONS = frozenset({"mask_ratio", "ft_ratio", "eta", "beta"})


@dataclass(frozen=True)
class _Registration:
    """Arguments of :func:`register` for one model."""

    model: type
    dataset: type | None
    trainer: type | None
    properties: Path
    dataset_arguments: tuple[str, ...]
    reset_on_load: Mapping[str, Any]
    check_values: Callable[[Mapping[str, Any]], None] | None


# A reload, as in notebooks, runs this module again in the same namespace: registered models stay registered.
_registered: dict[str, _Registration] = globals().get("_registered", {})
#: Properties that only data set classes of ``use_dataset`` read.
_dataset_properties: set[str] = globals().get("_dataset_properties", set())


# ------------------------------------------------------------------------------------------------ registering
def register(
    model: type,
    *,
    dataset: type | None = None,
    trainer: type | None = None,
    properties: Path,
    dataset_arguments: Sequence[str] = (),
    reset_on_load: Mapping[str, Any] | None = None,
    check_values: Callable[[Mapping[str, Any]], None] | None = None,
) -> None:
    """Make RecBole find ``model`` by its class name, like one of its own models.

    Args:
        model: the model class; ``run_recbole(model=model.__name__)`` finds it afterwards. It may be of any RecBole type,
            which is read from the class.
        dataset: its Dataset class; by default RecBole chooses by the model's type.
        trainer: its Trainer class; by default RecBole chooses.
        properties: YAML file with the model's defaults. It must hold every property of the model.
        dataset_arguments: properties that change the built data set. RecBole compares them before it reads a data set from
            a cache file (data/utils.py:63), so that stale caches are not used.
        reset_on_load: properties that matter in training only, with the values that they get when a model is loaded from
            a checkpoint.
        check_values: function that is called with all properties when a configuration is made; it raises ValueError for what
            the model cannot have. Values of RecBole's own properties are checked for every model.

    Registering a class again (the same module and name, as after a reload) replaces its earlier registration.

    Raises:
        ValueError: the name, in whatever case, or ``<name>Dataset`` / ``<name>Trainer`` belongs to another
            class.
        FileNotFoundError: ``properties`` is no file.
    """
    entry = _Registration(
        model, dataset, trainer, Path(properties), tuple(dataset_arguments), dict(reset_on_load or {}), check_values
    )
    name, alias = model.__name__, f"recbole.model.sequential_recommender.{model.__name__.lower()}"
    read_properties(entry.properties)  # a broken file is reported here, not at the first run
    _recbole_properties()  # cached before dataset_arguments grows by what only our models know
    earlier = _registered.get(name)
    _refuse_taken_model(model, alias)
    homes: tuple[tuple[str, ModuleType, type | None, type | None], ...] = (
        ("Dataset", recbole.data.dataset, dataset, earlier.dataset if earlier else None),
        ("Trainer", recbole.trainer, trainer, earlier.trainer if earlier else None),
    )
    for suffix, home, helper, before in homes:
        _refuse_taken_helper(name + suffix, home, helper, before)

    # Written only now, so that an error above leaves RecBole unchanged. get_model (utils/utils.py:75) calls find_spec, which
    # accepts an imported module that has a spec. The class keeps its real module, so that pickles of it import that.
    stand_in = ModuleType(alias, f"Stands in for {model.__module__}, where RecBole looks for {name}.")
    stand_in.__spec__ = ModuleSpec(alias, loader=None)
    setattr(stand_in, name, model)
    sys.modules[alias] = stand_in
    for suffix, home, helper, _ in homes:
        if helper is not None:
            setattr(home, name + suffix, helper)
        elif hasattr(home, name + suffix):
            delattr(home, name + suffix)
    _add_dataset_arguments(entry.dataset_arguments)
    _registered[name] = entry


def use_dataset(names: Sequence[str], dataset: type, dataset_arguments: Sequence[str] = ()) -> None:
    """Make RecBole load its own models of these names with another data set class (data/utils.py:46).

    Args:
        names: names of RecBole's models.
        dataset: the data set class.
        dataset_arguments: properties that only this class reads; as of :func:`register`.

    Raises:
        ValueError: RecBole has a data set class of its own for the model.
    """
    for name in names:
        _refuse_taken_helper(f"{name}Dataset", recbole.data.dataset, dataset, None)
        setattr(recbole.data.dataset, f"{name}Dataset", dataset)
    _recbole_properties()  # cached before dataset_arguments grows
    _add_dataset_arguments(dataset_arguments)
    _dataset_properties.update(dataset_arguments)


def _add_dataset_arguments(names: Iterable[str]) -> None:
    arguments = argument_list.dataset_arguments
    arguments.extend(name for name in names if name not in arguments)


def settings_for_loading(model: str) -> Mapping[str, Any]:
    """Return the properties that a model has when it is loaded from a checkpoint; none for RecBole's own."""
    return _registered[model].reset_on_load if model in _registered else {}


def _same_class(one: Any, other: type) -> bool:
    """Return whether both are the same class, perhaps defined again by a reload."""
    return (getattr(one, "__module__", None), getattr(one, "__qualname__", None)) == (
        other.__module__,
        other.__qualname__,
    )


def _refuse_taken_model(model: type, alias: str) -> None:
    """Raise ValueError if RecBole or another registration has this name, in whatever case."""
    name, file = model.__name__, f"{model.__name__.lower()}.py"
    for kind in _KINDS:  # look for files: importing the kinds would be slow, and exlib needs LightGBM
        path = _RECBOLE / "model" / f"{kind}_recommender" / file
        if path.is_file():
            raise ValueError(f"model name {name!r} is taken by RecBole ({kind}_recommender/{file}): rename the class")
    if alias in sys.modules:
        holders = [value for value in vars(sys.modules[alias]).values() if isinstance(value, type)]
        if not any(_same_class(holder, model) for holder in holders):
            taken = ", ".join(f"{holder.__module__}.{holder.__qualname__}" for holder in holders)
            raise ValueError(
                f"model name {name!r} is taken by {taken or alias}: RecBole compares names in lower case. "
                f"Rename {model.__module__}.{model.__qualname__}"
            )


def _refuse_taken_helper(name: str, home: ModuleType, helper: type | None, before: type | None) -> None:
    """Raise ValueError if ``home`` has another class named ``name``, which RecBole would use for our model."""
    holder = getattr(home, name, None)
    ours = holder is before or (helper is not None and _same_class(holder, helper))
    if holder is not None and not ours:
        raise ValueError(f"{home.__name__}.{name} exists ({holder!r}): RecBole would use it here. Rename the model")


# ------------------------------------------------------------------------------------------------- properties
def check_keys(names: Iterable[object], allowed: Collection[str], where: str, preferred: Collection[str] = ()) -> None:
    """Refuse unknown property names.

    RecBole's ``Config`` accepts any name, and returns None for a missing one. A misspelled property would silently change
    nothing.

    Args:
        names: the names to check.
        allowed: the known names.
        where: the source of the names, for the error: ``"config_dict"``.
        preferred: names that are suggested before others.

    Raises:
        ValueError: names every unknown property, the nearest known name of each, and ``where``.

    >>> check_keys(["use_item_embedding"], {"use_item_embedding"}, "config_dict")
    >>> check_keys(["use_item_embeding"], {"use_item_embedding"}, "config_dict")
    Traceback (most recent call last):
    ...
    ValueError: unknown property 'use_item_embeding' (did you mean 'use_item_embedding'?) in config_dict
    """
    unknown = [key for key in names if key not in allowed]
    if unknown:
        noun = "property" if len(unknown) == 1 else "properties"
        hints = [did_you_mean(str(key), preferred) or did_you_mean(str(key), allowed) for key in unknown]
        named = ", ".join(f"{key!r}{hint}" for key, hint in zip(unknown, hints, strict=True))
        raise ValueError(f"unknown {noun} {named} in {where}")


def known_properties(model: str) -> frozenset[str]:
    """Return the properties of a registered model: RecBole's common ones and those in the model's YAML file.

    Raises:
        KeyError: no such model is registered.
    """
    entry = _registered[model]
    return _recbole_properties().union(read_properties(entry.properties), entry.dataset_arguments)


def own_properties(model: str) -> frozenset[str]:
    """Return the properties in a model's YAML file, and of data set classes of this package; of RecBole's models, too."""
    if model in _registered:
        entry = _registered[model]
        return frozenset(read_properties(entry.properties)).union(entry.dataset_arguments)
    file = _RECBOLE / "properties" / "model" / f"{model}.yaml"
    return frozenset(_dataset_properties).union(read_properties(file) if file.is_file() else ())


def common_properties() -> frozenset[str]:
    """Return the properties of RecBole's common code."""
    return _recbole_properties()


@functools.lru_cache(maxsize=1)
def _recbole_properties() -> frozenset[str]:
    """Return the properties of RecBole's common code, from its YAML files and argument lists; none of a model."""
    folder = _RECBOLE / "properties"
    files = [folder / "overall.yaml", *folder.glob("quick_start_config/*"), *folder.glob("dataset/*.yaml")]
    lists = ("general_arguments", "training_arguments", "evaluation_arguments", "dataset_arguments")
    keys = set(_UNLISTED).union(*(getattr(argument_list, name) for name in lists))
    for file in files:
        if not file.name.endswith("url.yaml"):  # those map data set names to addresses
            keys.update(read_properties(file))
    return frozenset(keys - _dataset_properties)  # which dataset_arguments has if the module was reloaded


def _add_defaults(config: Any, entry: _Registration, dataset: str) -> None:
    """Let the model's defaults override RecBole's general ones, but not those that RecBole has for this data set.

    The default columns have the names that the user gives the fields.
    """
    own = _RECBOLE / "properties" / "dataset" / f"{dataset}.yaml"
    of_dataset = read_properties(own) if own.is_file() else {}
    defaults = read_properties(entry.properties)
    config.internal_config_dict.update({key: value for key, value in defaults.items() if key not in of_dataset})
    if "load_col" in defaults and "load_col" not in of_dataset:
        form = AtomicFormat.from_config(config.internal_config_dict | config.external_config_dict)
        config.internal_config_dict["load_col"] = {source: form.rename(c) for source, c in defaults["load_col"].items()}


def _rename_properties(config: Any) -> None:
    """Replace old names of properties in all sources of settings."""
    sources = (config.file_config_dict, config.variable_config_dict, config.cmd_config_dict, config.external_config_dict)
    for settings in sources:
        renamed = with_current_names(settings)
        settings.clear()
        settings.update(renamed)


def _check_properties(config: Any, model: str) -> None:
    """Refuse properties that no model knows, and record those that this model does not use.

    A configuration may serve several models side by side, so properties of other models are accepted. ``patches`` logs the
    unused ones, once per run.
    """
    own, anyone = known_properties(model), _properties_of_all_models()
    if config.external_config_dict.get("transform"):
        own |= _TRANSFORM_OPTIONS
    sources = (
        (config.file_config_dict, f"a config file (model {model})"),
        (config.variable_config_dict, f"config_dict (model {model})"),
        (
            config.cmd_config_dict,
            f"the command line (model {model}; RecBole reads every --name=value of the process: if "
            "this one is your own script's, create the Config inside recbole_integration.patches.clean_argv())",
        ),
    )
    for properties, where in sources:
        check_keys(properties, anyone | own, where, preferred=own)
    config.unused_properties = [key for key in config.external_config_dict if key not in own]


def _check_values(config: Any, entry: _Registration | None) -> None:
    """Refuse values that no model can have; of a registered model also those that only it cannot have.

    For RecBole's own models only what the user has set is looked at.
    """
    values = {**config.internal_config_dict, **config.external_config_dict}
    for key, must_be in OF_RECBOLE.items():
        if key in (values if entry else config.external_config_dict):
            check(key, values[key], must_be)
    if entry:
        check_evaluation(values, metric_types, _NOT_CUT)
    if entry and entry.check_values:
        entry.check_values(values)


def _properties_of_all_models() -> frozenset[str]:
    """Return the properties that RecBole, one of its models or a registered model knows."""
    return _properties_of_recbole_models().union(_dataset_properties, *(known_properties(model) for model in _registered))


@functools.lru_cache(maxsize=1)
def _properties_of_recbole_models() -> frozenset[str]:
    files = (_RECBOLE / "properties" / "model").glob("*.yaml")
    return _recbole_properties().union(_TRANSFORM_OPTIONS, *(read_properties(file) for file in files))


# ------------------------------------------------------------------------------------------------- installing
def install() -> None:
    """Connect registered models to RecBole's ``Config`` and its child processes; a second call changes nothing."""
    replace(configurator.Config, "_load_internal_config_dict", _hook_config)
    replace(configurator.Config, "_load_config_files", lambda _: _load_config_files)
    replace(configurator.Config, "_convert_config_dict", _hook_convert)
    replace(configurator.Config, "_load_cmd_line", _hook_cmd_line)
    replace(configurator, "get_model", _hook_get_model)
    for module in (importlib.import_module("recbole.quick_start"), quick_start):
        module.run_recboles = run_recboles  # type: ignore[attr-defined]


def _hook_config(original: Callable[..., None]) -> Callable[..., None]:
    """Let ``Config`` (config/configurator.py:238) read our models' YAML files, and check the user's keys."""

    def load(self: Any, model: str, model_class: type, dataset: str) -> None:
        original(self, model, model_class, dataset)
        entry = _registered.get(model)
        if entry is not None:
            _rename_properties(self)
            _add_defaults(self, entry, dataset)
            _check_properties(self, model)
        _check_values(self, entry)

    return load


def _load_config_files(self: Any, files: Sequence[str | Path] | None) -> dict[str, Any]:
    """Read property files as ``Config._load_config_files`` (configurator.py:142) does, with errors that name the file."""
    properties: dict[str, Any] = {}
    for file in files or ():
        properties |= read_properties(Path(file), loader=self.yaml_loader)
    return properties


def _hook_convert(original: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Name the property whose text ``Config._convert_config_dict`` (configurator.py:119) fails to evaluate: ``1/0``."""

    def convert(self: Any, properties: dict[str, Any]) -> dict[str, Any]:
        for key, value in properties.items():
            try:
                properties[key] = original(self, {key: value})[key]
            except Exception as error:  # text is evaluated as Python, which may raise anything
                raise ValueError(f"{key} is {shown(value)}, which cannot be evaluated ({error})") from error
        return properties

    return convert


def _hook_cmd_line(original: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
    """Refuse a property that stands twice on the command line by a ValueError (configurator.py:176)."""

    def load(self: Any) -> dict[str, Any]:
        try:
            return original(self)
        except SyntaxError as error:
            raise ValueError(str(error)) from error

    return load


def _hook_get_model(original: Callable[[str], type]) -> Callable[[str], type]:
    """Name the nearest model in the error for an unknown one.

    RecBole 1.2.1 looks for an unknown name last in ``exlib_recommender``, which imports LightGBM, so the user reads "No
    module named 'lightgbm'" (utils/utils.py:75). A name in the wrong case ends in an AttributeError (:84).
    """

    def get_model(model_name: str) -> type:
        try:
            model = original(model_name)
        except (ImportError, AttributeError, ValueError) as error:
            names = {file.stem for file in _RECBOLE.glob("properties/model/*.yaml")} | set(_registered)
            if model_name in names:  # it exists, and failed for another reason, such as a missing library
                raise
            hint = did_you_mean(model_name, names)
            raise ValueError(f"no model named {model_name!r} in RecBole or recbole_qbert{hint}") from error
        arrays_without_pickle(model)
        return model

    return get_model


def require_model(model: str) -> None:
    """Refuse a model that neither RecBole nor a registration knows.

    Raises:
        ValueError: names the model and the nearest one.
    """
    configurator.get_model(model)


def require_dataset(model: str, dataset: str, config_files: Sequence[str] = ()) -> None:
    """Refuse a data set that has no folder and that RecBole cannot download.

    Args:
        model: name of the model.
        dataset: name of the data set.
        config_files: property files. Properties of the command line are read, too, as in RecBole.

    Raises:
        FileNotFoundError: names the folder and the nearest data set next to it.
    """
    config = configurator.Config(model=model, dataset=dataset, config_file_list=list(config_files) or None)
    folder = Path(config["data_path"])
    addresses = read_properties(_RECBOLE / "properties" / "dataset" / "url.yaml")
    if folder.is_dir() or dataset in addresses:
        return
    existing = [path.name for path in folder.parent.glob("*") if path.is_dir()]
    raise FileNotFoundError(
        f"data set {dataset!r}: there is no folder {folder}{did_you_mean(dataset, existing)}; --data_path must name the "
        f"folder that holds a folder {dataset} with {dataset}.inter in it"
    )


# -------------------------------------------------------------------------------------------- other processes
_run_recboles = inspect.unwrap(quick_start.run_recboles)


def run_recboles(rank: int, *args: Any) -> None:
    """Call RecBole's function of the same name (quick_start.py:168), from a module that registers our models.

    ``run(nproc=2)`` sends the global ``run_recboles`` of its module to fresh interpreters. These import only the module of
    the function. With RecBole's own function that is RecBole, where our models are unknown.
    """
    _run_recboles(rank, *args)


# Found again by inspect.unwrap: reloading this module must not wrap the wrapper.
run_recboles.__wrapped__ = _run_recboles  # type: ignore[attr-defined]


def objective_function(
    config_dict: dict[str, Any] | None = None,
    config_file_list: list[str] | None = None,
    saved: bool = True,
) -> dict[str, Any]:
    """Call RecBole's tuning objective (quick_start.py:184) from a module that registers our models, for ray's workers.

    Hyperopt runs in this process and works with this function or RecBole's own.

    Args:
        config_dict: settings of a trial.
        config_file_list: property files.
        saved: whether to write a checkpoint.

    Returns:
        RecBole's result: model, metrics of validation and test.
    """
    result: dict[str, Any] = quick_start.objective_function(config_dict, config_file_list, saved)
    return result
