"""Commands that convert, complete, import and check data sets."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from dataset_prep import checks
from recbole_qbert.cli.common import Figures, add_config_files, file_properties, refuse_properties, workflow_arguments
from recbole_qbert.data.atomic_files import ENCODING, AtomicFormat
from recbole_qbert.recbole_integration.job import Job
from recbole_qbert.utils.console import progress_bars_wanted, say, to_plain_values


def add_commands(add: Any) -> None:
    """Declare these commands; ``add(name, run, text, kind)`` makes a parser."""
    command = add("prepare", prepare, "raw Amazon files to a data set: atomic files, pictures, features", kind="written")
    text = (
        "reviews of the 2014, 2018 or 2023 edition, or RecBole's own .inter; text, packed text or a table (docs/own-data.md)"
    )
    command.add_argument("--reviews", required=True, metavar="FILE", help=text)
    text = "product metadata, likewise (default: none, and items have an id only)"
    command.add_argument("--metadata", metavar="FILE", help=text)
    command.add_argument("--edition", choices=("2014", "2018", "2023", "recbole"), help="default: detected from the content")
    text = "local: DuckDB on this machine; spark: PySpark, for data that need several (default: local)"
    command.add_argument("--engine", choices=("local", "spark"), default="local", help=text)
    command.add_argument("--min_user", type=int, default=5, help="least interactions of a user (default: 5)")
    command.add_argument("--min_item", type=int, default=5, help="least interactions of an item (default: 5)")
    command.add_argument("--after", metavar="TIME", help="keep interactions at or after this time (ISO date, or seconds)")
    command.add_argument("--before", metavar="TIME", help="keep interactions before this time")
    command.add_argument("--require_image", action="store_true", help="leave out items that list no picture")
    text = "accepted bad lines: a share of the file, or a number if 1 or more (default: 0.001)"
    command.add_argument("--max_bad_lines", type=float, default=0.001, help=text)
    command.add_argument("--images", action="store_true", help="fetch the pictures afterwards, as the command images does")
    _picture_options(command)
    _encoder_options(command)

    command = add("images", images, "fetch the pictures that an .item file lists", kind="one")
    _picture_options(command)
    add_config_files(command)
    command = add("encode", encode, "text and image features by a language model and by CLIP", kind="one")
    _encoder_options(command)
    add_config_files(command)

    command = add("import", take_over, "data sets that others publish: MQL4GRec, UniSRec, VQ-Rec, MISSRec", kind="written")
    command.add_argument("--source", metavar="DIR", help="their folder")
    command.add_argument("--source_dataset", metavar="NAME", help="what their files are called (default: as --dataset)")
    text = "instead of --source: a matrix of your own for an existing data set, and the list of its item ids; repeatable"
    command.add_argument("--features", nargs=3, action="append", metavar=("MODALITY", "NPY", "IDS"), help=text)
    text = "items without a row in the matrix: an error, or a row that says 'no such modality' (default: error)"
    command.add_argument("--missing", choices=("error", "mask"), default="error", help=text)
    add_config_files(command)
    text = "give items that share a published semantic ID, or whose ID ends early, IDs of their own (default: no IDs then)"
    command.add_argument("--reallocate", action="store_true", help=text)
    command.add_argument("--width", type=int, default=768, help="numbers a row of UniSRec's feature files (default: 768)")

    text = "check a data set and what the commands left of it; exit code 1 when something is wrong"
    command = add("doctor", doctor, text)
    text = "write a copy in which everything mechanical is mended, and check the copy; the original stays as it is"
    command.add_argument("--fix", action="store_true", help=text)
    text = "with --fix: folder to write the copy's folder into (default: <data_path>-fixed)"
    command.add_argument("--fix_to", metavar="DIR", help=text)
    text = "with --fix: leave out rows that cannot be mended (default: they stay, and the exit code is 1)"
    command.add_argument("--drop_bad_rows", action="store_true", help=text)


def _picture_options(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("pictures")
    group.add_argument("--max_images", type=int, metavar="N", help="of an item, the first N (default: all)")
    group.add_argument("--max_side", type=int, metavar="PIXELS", help="shrink larger pictures (default: keep as they are)")
    group.add_argument("--user_agent", metavar="TEXT", help="name and address of who sends the requests")
    group.add_argument("--per_host_rate", type=float, metavar="R", help="requests a second to one host (default: 10)")
    group.add_argument("--retry_missing", action="store_true", help="try again pictures that servers have said are gone")


def _encoder_options(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("encoders")
    text = "a language model: hub name or local folder, for example huggyllama/llama-7b, the paper's"
    group.add_argument("--text_encoder", metavar="MODEL", help=text)
    text = "an open_clip architecture, for example ViT-L-14, the paper's; or local-dir:FOLDER"
    group.add_argument("--image_encoder", metavar="MODEL", help=text)
    group.add_argument("--pretrained", default="openai", metavar="TAG|FILE", help="its weights (default: openai)")
    text = "mean of all tokens (default), last token, or first (cls)"
    group.add_argument("--pooling", choices=("mean", "last", "cls"), default="mean", help=text)
    group.add_argument("--template", help="text of an item, with the columns of .item in braces")
    group.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the computation")
    group.add_argument("--device", default="auto", help="cpu, cuda, or auto (default)")
    group.add_argument(
        "--images_per_item", type=int, default=1, metavar="J", help="pictures encoded of an item (default: 1)"
    )
    group.add_argument("--rebuild", action="store_true", help="replace features that another encoder made")


def prepare(args: argparse.Namespace) -> Figures:
    """Convert raw Amazon files to atomic files; then, with these options, fetch pictures and encode features."""
    from dataset_prep.amazon.convert import convert

    fields, args.properties = args.properties, {}  # those that follow take none
    report = convert(
        args.reviews,
        args.metadata,
        args.dataset,
        Path(args.data_path),
        engine=args.engine,
        edition=args.edition,
        min_user_interactions=args.min_user,
        min_item_interactions=args.min_item,
        require_image=args.require_image,
        after=args.after,
        before=args.before,
        max_bad_lines=args.max_bad_lines,
        fields=fields,
        progress=progress_bars_wanted(),
    )
    figures: Figures = to_plain_values(asdict(report))
    show_prepared(figures, folder_of(args))
    if args.images:
        figures["images"] = images(args)
    if args.text_encoder or args.image_encoder:
        figures["features"] = encode(args)["features"]
    return figures


def images(args: argparse.Namespace) -> Figures:
    """Fetch the pictures of a data set."""
    from dataset_prep.images.download import Options, download

    form = AtomicFormat.from_config(file_properties(args))
    names = ("max_images", "max_side", "user_agent", "per_host_rate", "retry_missing")
    options = {name: getattr(args, name) for name in names if getattr(args, name)}
    report = download(folder_of(args), args.dataset, options=Options(**options, form=form), progress=progress_bars_wanted())
    figures: Figures = to_plain_values(asdict(report))
    show(figures)
    return figures


def encode(args: argparse.Namespace) -> Figures:
    """Encode texts with a language model and images with CLIP."""
    properties = file_properties(args, "text_fields", "text_vectors")
    if not args.text_encoder and not args.image_encoder:
        raise ValueError("nothing to encode: give --text_encoder, --image_encoder or both")
    figures: Figures = {"dataset": args.dataset, "features": {}}
    form = AtomicFormat.from_config(properties)
    common: dict[str, Any] = {
        "form": form,
        "device": args.device,
        "rebuild": args.rebuild,
        "progress": progress_bars_wanted(),
    }
    if args.text_encoder:
        from dataset_prep.encoders.text_encoder import encode_texts

        options = common | {"model": args.text_encoder, "pooling": args.pooling, "dtype": args.dtype}
        if fields := properties.get("text_fields"):
            options["text_fields"] = [fields] if isinstance(fields, str) else fields
        if way := properties.get("text_vectors"):
            options["text_vectors"] = way
        if args.template:
            options["template"] = args.template
        figures["features"]["text"] = encode_texts(folder_of(args), args.dataset, **options)
    if args.image_encoder:
        from dataset_prep.encoders.image_encoder import encode_images

        precision = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}[args.dtype]
        options = common | {"model": args.image_encoder, "pretrained": args.pretrained}
        options |= {"precision": precision, "max_images": args.images_per_item}
        figures["features"]["image"] = encode_images(folder_of(args), args.dataset, **options)
    for modality, record in figures["features"].items():
        shape = "x".join(map(str, record["shape"]))
        say(f"{modality:<6} {shape} {record['dtype']}, {record['coverage']:.1%} of the items: {record['encoder']}")
    return to_plain_values(figures)


def take_over(args: argparse.Namespace) -> Figures:
    """Import data sets and features that others published."""
    from dataset_prep import importers

    properties = file_properties(args)
    if bool(args.source) == bool(args.features):
        raise ValueError("give either --source DIR or --features MODALITY NPY IDS")
    if args.reallocate and args.features:
        raise ValueError("reallocate is for the semantic IDs of --source; --features has none")
    if args.features:
        files = {modality: (Path(matrix), Path(ids)) for modality, matrix, ids in args.features}
        report = importers.arrays(
            folder_of(args),
            args.dataset,
            files,
            missing=args.missing,
            progress=progress_bars_wanted(),
            form=AtomicFormat.from_config(properties),
        )
    else:
        refuse_properties(args)  # they publish in formats of their own
        source, theirs = Path(args.source), args.source_dataset or args.dataset
        kind = importers.detect(source)
        if kind == "arrays":
            raise ValueError(f"{source} holds matrices only; give them with --features MODALITY NPY IDS")
        if kind == "mql4grec":
            report = importers.mql4grec(
                source,
                theirs,
                Path(args.data_path),
                name=args.dataset,
                reallocate=args.reallocate,
                progress=progress_bars_wanted(),
            )
        elif args.reallocate:
            raise ValueError(f"reallocate is for folders with semantic IDs; {source} has none")
        else:
            report = importers.unisrec(
                source, theirs, Path(args.data_path), name=args.dataset, width=args.width, progress=progress_bars_wanted()
            )
    figures: Figures = to_plain_values(asdict(report))
    show(figures)
    return figures


def doctor(args: argparse.Namespace) -> Figures:
    """Report what is wrong with a data set, and what to do; or write a mended copy, and report what is wrong with that."""
    if not args.fix and (args.fix_to or args.drop_bad_rows):
        raise ValueError("--fix_to and --drop_bad_rows belong to --fix")
    settings = _settings(args)
    form = AtomicFormat.from_config(settings)
    data_path = Path(args.data_path)
    figures: Figures = {"dataset": args.dataset}
    if args.fix:
        folder = data_path if data_path.name not in ("", "..") else data_path.resolve()
        copy = Path(args.fix_to) if args.fix_to else folder.with_name(f"{folder.name}-fixed")
        mended = checks.fix(data_path, args.dataset, copy, form=form, drop_bad_rows=args.drop_bad_rows)
        say(checks.as_text(mended) or "nothing to mend")
        say(f"the copy, in UTF-8: {copy / args.dataset} (use --data_path={copy}, without the property encoding)")
        figures |= {"mended": [asdict(finding) for finding in mended], "copy": str(copy / args.dataset)}
        data_path, form = copy, replace(form, encoding=ENCODING)
    options: dict[str, Any] = {"progress": progress_bars_wanted(), "text_fields": settings.get("text_fields")}
    options["output"] = None if args.fix else Path(args.output)
    findings = checks.check(data_path, args.dataset, form=form, **options)
    say(checks.as_text(findings))
    records = [asdict(finding) for finding in findings]
    return {**figures, "findings": records, "exit_code": checks.worst(findings)}


def _settings(args: argparse.Namespace) -> Mapping[str, Any]:
    """Return the properties as a training would have them; without data, only those of the command line."""
    if not (folder_of(args) / f"{args.dataset}.inter").is_file():
        return args.properties
    settings: Mapping[str, Any] = Job.of(**workflow_arguments(args)).configure().final_config_dict
    return settings


def folder_of(args: argparse.Namespace) -> Path:
    """Return the data set's own folder."""
    return Path(args.data_path) / args.dataset


def show_prepared(figures: Figures, folder: Path) -> None:
    """Print the sizes after every step, and what was left out."""
    for kind in ("reviews", "metadata"):
        for file in [figures[kind]] if kind == "reviews" else figures[kind]:
            say(f"{kind:<9} {file['file']}, {file['edition']}: {file['lines']:,} lines, {file['bad']} bad")
            for bad in file["bad_lines"][:5]:
                say(f"  left out: {bad}")
    say(f"{'step':<18} {'users':>10} {'items':>10} {'interactions':>13} {'sparsity':>9} {'average length':>15}")
    for step in figures["steps"]:
        sizes = f"{step['users']:>10,} {step['items']:>10,} {step['interactions']:>13,}"
        say(f"{step['step']:<18} {sizes} {step['sparsity']:>9.4%} {step['average_length']:>15.2f}")
    missing = ", ".join(f"{name} {count}" for name, count in figures["items_without"].items() if count)
    say(f"items without: {missing or 'nothing'}")
    say(f"written: {folder} (prepare.json says all of this)")


def show(figures: Figures) -> None:
    """Print figures as YAML."""
    say(yaml.safe_dump(figures, sort_keys=False, allow_unicode=True))
