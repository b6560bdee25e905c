"""recbole_qbert.data.text_columns: columns of text under whatever name, their titles, and what is said about them."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import recbole

from recbole_qbert.data.atomic_files import AtomicFormat, Header, parse_columns
from recbole_qbert.data.builtin_encoders import read_texts
from recbole_qbert.data.text_columns import AUTO, read_titles, text_columns, title_column

PREPARED = (
    "item_id:token title:token_seq brand:token categories:token_seq description:token_seq price:float image_urls:token_seq"
)


def header(columns: str) -> Header:
    return Header(Path("toy.item"), parse_columns(columns, " "))


@pytest.mark.parametrize(
    ("columns", "chosen", "title"),
    [
        (PREPARED, ("title", "brand", "categories", "description"), "title"),
        ("item_id:token movie_title:token_seq release_year:token class:token_seq", ("movie_title", "class"), "movie_title"),
        ("item_id:token genres:token_seq name:token", ("name", "genres"), "name"),
        ("item_id:token blurb:token_seq year:token product_title:token_seq", ("product_title", "blurb"), "product_title"),
        ("item_id:token productTitle:token price:float", ("productTitle",), "productTitle"),
        ("item_id:token blurb:token_seq", ("blurb",), None),
        ("item_id:token description:token title:float", ("description",), None),
        ("item_id:token also_buy:token_seq similar_ids:token_seq url:token_seq year:token", (), None),
        ("item_id:token", (), None),
    ],
)
def test_text_columns_are_found_by_name_and_type(columns: str, chosen: tuple[str, ...], title: str | None) -> None:
    assert text_columns(header(columns), AUTO, AtomicFormat()) == chosen
    assert title_column(header(columns), AUTO, AtomicFormat()) == title


def test_the_item_field_is_no_text_and_named_columns_are_taken_as_they_are() -> None:
    some = header("product_name:token label:token title:token_seq")
    assert text_columns(some, AUTO, AtomicFormat(item_field="product_name")) == ("title",)
    assert text_columns(some, ["label"], AtomicFormat()) == ("label",)
    assert text_columns(some, [], AtomicFormat()) == ()
    with pytest.raises(ValueError, match=r"text_fields.*'lable'.*'label'.*toy\.item"):
        text_columns(some, ["lable"], AtomicFormat())


def test_texts_and_titles_of_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "toy.item"
    path.write_bytes(
        "﻿film|name:token|genre:token_seq\r\n\r\n007|Él  b|A;B\r\nNA|x|\r\nz|\r\n".replace("film", "film:token").encode(
            "utf-16-le"
        )
    )
    form = AtomicFormat("|", ";", "utf-16-le", item_field="film")
    assert read_texts(path, ["z", "007", "gone"], form=form) == ["", "Él  b A B", ""]
    assert read_titles(path, ["007", "z"], AUTO, form) == {"007": "Él b"}


def test_what_was_taken_is_said_and_so_is_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "toy.item"
    with caplog.at_level(logging.INFO):
        path.write_text("item_id:token\tmovie_title:token_seq\na\tAlien\n")
        assert read_texts(path, ["a"]) == ["Alien"]
        assert "movie_title" in caplog.text and caplog.records[-1].levelno == logging.INFO
        assert read_texts(path, ["b"]) == [""]
        assert caplog.records[-1].levelno == logging.WARNING and "movie_title" in caplog.records[-1].getMessage()
        path.write_text("item_id:token\tprice:float\na\t1\n")
        assert read_texts(path, ["a"]) == [""]
        assert caplog.records[-1].levelno == logging.WARNING and "text_fields" in caplog.records[-1].getMessage()


def test_an_item_twice_is_refused_by_line(tmp_path: Path) -> None:
    path = tmp_path / "toy.item"
    path.write_text("item_id:token\ttitle:token_seq\na\tx\nb\ty\na\tz\n")
    with pytest.raises(ValueError, match=r"toy\.item:4: .*'a'.*line 2"):
        read_texts(path, ["a"])


def test_the_movies_that_come_with_recbole_have_texts() -> None:
    path = Path(recbole.__file__).parent / "dataset_example" / "ml-100k" / "ml-100k.item"
    assert read_texts(path, ["1"]) == ["Toy Story Animation Children's Comedy"]
    assert read_titles(path, ["2"], AUTO, AtomicFormat()) == {"2": "GoldenEye"}
