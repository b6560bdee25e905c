"""recbole_qbert.data.item_features: alignment by token; every bad input is named, with the way out."""

from __future__ import annotations

import io
import shutil

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recbole_qbert.data import item_features as features
from recbole_qbert.data.item_features import check_token, load, read_item_list, save
from recbole_qbert.utils.io import sha256
from tests.helpers import write_features

ITEMS = ("p", "q", "r", "s")
TEXT = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.fixture
def folder(tmp_path):
    write_features(tmp_path, ITEMS, text=TEXT)
    return tmp_path


def put(folder, matrix, modality="text"):
    np.save(folder / f"toy.{modality}.npy", matrix)


# -------------------------------------------------------------------------------- alignment


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(range(4)), st.integers(1, 4))
def test_rows_follow_the_items_asked_for(tmp_path, order, count):
    write_features(tmp_path, ITEMS, text=TEXT)
    wanted = [ITEMS[row] for row in order[:count]]
    found = load(tmp_path, "toy", wanted, ["text"])
    assert found.items == tuple(wanted)
    assert np.array_equal(found.vectors["text"][:, 0], TEXT[order[:count]])
    assert found.present["text"].all()


def test_the_order_of_the_file_does_not_matter(tmp_path):
    shuffled = [2, 0, 3, 1]
    write_features(tmp_path, [ITEMS[row] for row in shuffled], text=TEXT[shuffled])
    assert np.array_equal(load(tmp_path, "toy", ITEMS, ["text"]).vectors["text"][:, 0], TEXT)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_any_float_type_becomes_float32(folder, dtype):
    put(folder, TEXT.astype(dtype))
    found = load(folder, "toy", ITEMS, ["text"])
    assert found.vectors["text"].dtype == np.float32
    assert np.array_equal(found.vectors["text"][:, 0], TEXT)


def test_several_vectors_an_item_with_some_missing(tmp_path):
    image = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    image[1, 1] = image[3] = np.nan
    write_features(tmp_path, ITEMS, text=TEXT, image=image)
    found = load(tmp_path, "toy", ITEMS, ["text", "image"])
    assert list(found.vectors) == ["text", "image"]
    assert found.vectors["text"].shape == (4, 1, 3)
    assert found.vectors["image"].shape == (4, 2, 3)
    assert found.present["image"].tolist() == [[True, True], [True, False], [True, True], [False, False]]
    assert np.array_equal(found.vectors["image"], np.nan_to_num(image))
    assert found.coverage() == {"text": 1.0, "image": 0.75}


def test_a_row_of_zeros_is_there_and_a_row_of_nan_is_not(folder):
    put(folder, np.array([[0.0, 0.0], [np.nan, np.nan], [1.0, 2.0], [3.0, 4.0]]))
    found = load(folder, "toy", ITEMS, ["text"])
    assert found.present["text"][:, 0].tolist() == [True, False, True, True]
    assert not found.vectors["text"][1].any()


def test_only_the_rows_asked_for_are_read(folder, monkeypatch):
    """The file is mapped, not loaded; a bad row that nobody asked for does no harm."""
    spoilt = TEXT.copy()
    spoilt[3, 1] = np.inf
    put(folder, spoilt)
    opened, true_load = [], np.load
    monkeypatch.setattr(np, "load", lambda *a, **k: opened.append(true_load(*a, **k)) or opened[-1])
    found = load(folder, "toy", ["r", "p"], ["text"])
    assert isinstance(opened[0], np.memmap)
    assert np.array_equal(found.vectors["text"][:, 0], TEXT[[2, 0]])
    with pytest.raises(ValueError, match=r"item s"):
        load(folder, "toy", ["s"], ["text"])


def test_what_it_was_made_from_changes_with_the_files(folder):
    first = load(folder, "toy", ITEMS, ["text"]).inputs
    assert first["text"] == sha256(folder / "toy.text.npy")
    assert load(folder, "toy", ITEMS[:2], ["text"]).inputs == first
    put(folder, TEXT + 1)
    assert load(folder, "toy", ITEMS, ["text"]).inputs != first


def test_available_lists_text_and_image_first_and_no_other_data_set(tmp_path):
    write_features(tmp_path, ITEMS, image=TEXT, audio=TEXT, text=TEXT)
    write_features(tmp_path, ITEMS, "toy2", video=TEXT)
    assert features.available(tmp_path, "toy") == ("text", "image", "audio")
    assert features.available(tmp_path, "toy2") == ("video",)
    assert features.available(tmp_path / "no", "toy") == ()


def test_what_the_stages_write_is_no_modality(tmp_path):
    """Stage 1 writes X.fused.npy and X.depth.npy, maybe into the folder of the features."""
    write_features(tmp_path, ITEMS, text=TEXT)
    np.save(tmp_path / "toy.fused.npy", TEXT)
    np.save(tmp_path / "toy.depth.npy", np.ones(4, dtype=np.int16))
    assert features.available(tmp_path, "toy") == ("text",)


# -------------------------------------------------------------------------------- missing items


def test_items_without_a_row_are_an_error_with_numbers_and_a_way_out(folder):
    with pytest.raises(ValueError, match=r"3 of 5.*toy\.items\.txt.*x, y, z") as error:
        load(folder, "toy", ["x", "p", "y", "q", "z"], ["text"])
    assert "missing_features" in str(error.value)
    assert "mask" in str(error.value)


def test_items_without_a_row_can_count_as_items_without_modalities(folder):
    found = load(folder, "toy", ["x", "q", "y"], ["text"], missing="mask")
    assert found.items == ("x", "q", "y")
    assert found.present["text"][:, 0].tolist() == [False, True, False]
    assert np.array_equal(found.vectors["text"][:, 0], [[0, 0, 0], TEXT[1], [0, 0, 0]])
    assert found.coverage() == {"text": pytest.approx(1 / 3)}


def test_an_unknown_rule_for_missing_items_is_refused(folder):
    with pytest.raises(ValueError, match=r"missing_features.*'drop'.*error.*mask"):
        load(folder, "toy", ITEMS, ["text"], missing="drop")


# -------------------------------------------------------------------------------- bad matrices


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (TEXT[:3], r"3 rows.*items\.txt.*4.*1 rows are missing"),
        (np.vstack([TEXT, TEXT[:2]]), r"6 rows.*items\.txt.*4.*2 rows are extra"),
        (TEXT.astype(np.int64), "int64.*float16, float32 or float64"),
        (TEXT.astype(str), "<U32"),
        (TEXT.astype(complex), "complex128"),
        (TEXT[:, 0], r"\(4,\).*\[N, D\] or \[N, J, D\]"),
        (TEXT[:, None, None], r"\(4, 1, 1, 3\)"),
        (TEXT[:, :0], r"\(4, 0\)"),
        (TEXT.astype(object), "npy"),
    ],
)
def test_a_matrix_of_the_wrong_kind_is_refused(folder, matrix, message):
    put(folder, matrix)
    with pytest.raises(ValueError, match=message) as error:
        load(folder, "toy", ITEMS, ["text"])
    assert "toy.text.npy" in str(error.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(4, 3), (4, 2, 3)])
def test_a_vector_that_is_partly_not_finite_is_refused_with_row_and_item(folder, value, shape):
    matrix = np.ones(shape, dtype=np.float16)
    matrix.reshape(4, -1)[2, -1] = matrix.reshape(4, -1)[3, 0] = value
    put(folder, matrix)
    message = r"toy\.text\.npy: row 2 \(item r\).*\b2 vectors"
    with pytest.raises(ValueError, match=message):
        load(folder, "toy", ["p", "q", "s", "r"][::-1], ["text"])


def test_a_row_of_infinities_is_not_a_missing_row(folder):
    put(folder, np.where(np.arange(4)[:, None] == 1, np.inf, TEXT))
    with pytest.raises(ValueError, match=r"row 1 \(item q\)"):
        load(folder, "toy", ITEMS, ["text"])


@pytest.mark.parametrize("content", [b"", b"not a matrix at all", b"\x93NUMPY\x01\x00v\x00{"])
def test_a_file_that_is_no_matrix_is_refused(folder, content):
    (folder / "toy.text.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"toy\.text\.npy"):
        load(folder, "toy", ITEMS, ["text"])


def test_a_cut_off_matrix_is_refused(folder):
    path = folder / "toy.text.npy"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"toy\.text\.npy"):
        load(folder, "toy", ITEMS, ["text"])


def test_an_archive_of_matrices_is_refused(folder):
    archive = io.BytesIO()
    np.savez(archive, TEXT)
    (folder / "toy.text.npy").write_bytes(archive.getvalue())
    with pytest.raises(ValueError, match=r"toy\.text\.npy"):
        load(folder, "toy", ITEMS, ["text"])


def test_missing_files_are_named_with_the_way_out(folder):
    with pytest.raises(FileNotFoundError, match=r"toy\.image\.npy.*injection_modalities"):
        load(folder, "toy", ITEMS, ["image"])
    (folder / "toy.items.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"toy\.items\.txt"):
        load(folder, "toy", ITEMS, ["text"])


# -------------------------------------------------------------------------------- item lists


def test_a_token_listed_twice_is_refused_with_both_lines(tmp_path):
    path = tmp_path / "toy.items.txt"
    path.write_text("p\nq\nr\nq\n")
    with pytest.raises(ValueError, match=r"toy\.items\.txt:4:.*'q'.*line 2"):
        read_item_list(path)


@pytest.mark.parametrize("token", ["NA", "nan", "None", "null", ""])
def test_a_token_that_pandas_loses_is_refused_with_its_line(tmp_path, token):
    path = tmp_path / "toy.items.txt"
    path.write_text(f"p\n{token}\nr\n")
    with pytest.raises(ValueError, match=rf"toy\.items\.txt:2:.*'{token}'"):
        read_item_list(path)


def test_refused_tokens_are_exactly_those_that_pandas_loses():
    words = [
        "NA",
        "N/A",
        "n/a",
        "#N/A",
        "#N/A N/A",
        "#NA",
        "NaN",
        "nan",
        "-NaN",
        "-nan",
        "<NA>",
        "NULL",
        "null",
        "None",
    ]
    words += [
        "1.#IND",
        "-1.#IND",
        "1.#QNAN",
        "-1.#QNAN",
        "",
        "none",
        "Nan",
        "na",
        "0",
        "False",
        " ",
        "-",
        "inf",
        "NAN",
    ]
    for word in words:
        table = pd.read_csv(io.StringIO(f"item_id\tuser\n{word}\tu\n"), sep="\t", dtype=str)
        try:
            check_token(word, "here")
            kept = True
        except ValueError:
            kept = False
        assert kept == bool(table["item_id"].notna()[0]), word


def test_line_ends_and_odd_tokens_survive(tmp_path):
    path = tmp_path / "toy.items.txt"
    path.write_bytes("a b\r\n ü\r\n#1\n007".encode())
    assert list(read_item_list(path).items()) == [("a b", 0), (" ü", 1), ("#1", 2), ("007", 3)]


# -------------------------------------------------------------------------------- save


def test_save_then_load(tmp_path):
    paths = save(tmp_path, "toy", ITEMS, {"text": TEXT}, {"encoder": "none"})
    assert sorted(p.name for p in paths) == sorted(p.name for p in tmp_path.iterdir())
    assert {p.name for p in paths} == {"toy.items.txt", "toy.text.npy", "toy.features.json"}
    assert np.array_equal(load(tmp_path, "toy", ITEMS, ["text"]).vectors["text"][:, 0], TEXT)


def test_save_refuses_a_matrix_of_another_length_and_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"image.*3.*4"):
        save(tmp_path, "toy", ITEMS, {"text": TEXT, "image": TEXT[:3]}, {})
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------------------- real data


@pytest.mark.pipeline
def test_real_features_are_aligned_to_the_items_of_the_interactions(shared_data):
    """Text and image vectors of one item are nearer than those of two: no row is shifted."""
    folder = shared_data / "Amazon_Scientific"
    used = pd.read_csv(folder / "Amazon_Scientific.inter", sep="\t", dtype=str)["item_id:token"]
    items = sorted(set(used))[::3]
    found = load(folder, "Amazon_Scientific", items, ["text", "image"])
    text, image = (v[:, 0] / np.linalg.norm(v[:, 0], axis=1, keepdims=True) for v in found.vectors.values())
    own = (text * image).sum(1)
    assert own.mean() > (text * np.roll(image, 1, 0)).sum(1).mean() + 0.03


def test_two_sets_in_one_folder_do_not_mix(tmp_path):
    write_features(tmp_path, ITEMS, text=TEXT)
    shutil.copy(tmp_path / "toy.text.npy", tmp_path / "toy.v2.text.npy")  # of a data set named 'toy.v2'
    assert features.available(tmp_path, "toy") == ("text",)


def test_a_byte_order_mark_belongs_to_no_item(folder):
    path = folder / "toy.items.txt"
    before = load(folder, "toy", ITEMS, ["text"]).vectors["text"]
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert np.array_equal(load(folder, "toy", ITEMS, ["text"]).vectors["text"], before)


# ------------------------------------------------------------------------------------------------ scale of the vectors
def _plain(rows=60, columns=16):
    return np.random.default_rng(0).normal(size=(rows, columns)).astype(np.float32)


@pytest.mark.parametrize("several", [False, True])
def test_a_flipped_bit_is_named_by_file_and_item(tmp_path, several):
    """0.05 becomes 1.6e37 by one bit of its exponent; all items would fall onto one code."""
    matrix = _plain()
    matrix[7, 3] = 0.05
    matrix.view(np.uint32)[7, 3] ^= 1 << 30
    matrix[9] = np.nan
    matrix = np.stack([matrix, np.full_like(matrix, np.nan)], 1) if several else matrix
    assert features.scale_outliers(matrix).tolist() == [7]
    items = [f"i{number}" for number in range(60)]
    features.save(tmp_path, "X", items, {"text": matrix}, {})
    with pytest.raises(ValueError, match=r"X\.text\.npy: 1 of 60 items .*first: i7;"):
        features.load(tmp_path, "X", items, ["text"])


def test_several_damaged_rows_are_found_and_all_blocks_are_read(monkeypatch):
    matrix = _plain()
    matrix[[5, 40]] *= 1e6
    assert features.scale_outliers(matrix).tolist() == [5, 40]
    monkeypatch.setattr(features, "BLOCK", 100)
    assert features.scale_outliers(matrix).tolist() == [5, 40]
    assert features.scale_outliers(matrix.astype(np.float64) * 1e200).tolist() == [5, 40]


@pytest.mark.parametrize(
    "matrix",
    [
        _plain() * np.geomspace(1, 1e4, 60)[:, None],  # a continuous tail
        _plain() * 1e-30,
        _plain() * 1e30,
        np.r_[np.zeros((50, 16)), _plain(10)],
        np.full((60, 16), np.nan),
        np.r_[_plain(), np.full((1, 16), np.inf)],
        np.array([[1.0], [1e9]]),  # of two rows none is usual
        np.empty((0, 4)),
    ],
)
def test_other_scales_are_no_outliers(matrix):
    assert features.scale_outliers(matrix).tolist() == []


@pytest.mark.parametrize(
    ("matrix", "said"),
    [
        (_plain(), []),
        (_plain() * 1e-35, ["e-3"]),
        (np.ones((60, 16)), ["equal"]),
        (_plain() * np.r_[1e5, np.ones(15)], ["column 0"]),
        (_plain() * np.geomspace(1, 1e7, 60)[:, None], ["longest vector"]),
        (np.full((60, 16), np.nan), []),
    ],
)
def test_suspicious_scales_are_described(matrix, said):
    warnings = features.scale_warnings(matrix)
    assert len(warnings) >= len(said) and all(any(part in line for line in warnings) for part in said)
    assert bool(warnings) == bool(said)


def test_real_features_have_a_sound_scale(shared_data):
    for path in sorted(shared_data.glob("*/*.npy")):
        if "codes" not in path.name:
            matrix = features.open_matrix(path)
            assert features.scale_outliers(matrix).tolist() == [] and features.scale_warnings(matrix) == []


def test_an_item_list_in_another_encoding_names_the_file(tmp_path):
    (tmp_path / "X.items.txt").write_bytes("caf\xe9\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"X\.items\.txt.*UTF-8"):
        features.read_item_list(tmp_path / "X.items.txt")
