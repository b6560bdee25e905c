"""recbole_qbert.quantization.semantic_ids: the .sid file to the byte, what it refuses, and its figures by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recbole_qbert.quantization import semantic_ids
from recbole_qbert.quantization.semantic_ids import SemanticIDs, health, load, prefixes_of, require_unique

HEADER = "item_id:token\tsemantic_id:token_seq\n"


def ids_of(codes, items=None, sets=None, size=256):
    codes = np.array(codes, dtype=np.int16)
    levels = codes.shape[1] // (sets or 1)
    prefixes = tuple(p for number in range(sets or 1) for p in prefixes_of(levels, number))
    return SemanticIDs(tuple(items or (f"i{n}" for n in range(len(codes)))), codes, prefixes, size)


def write(path, *lines, header=HEADER):
    path.write_text(header + "".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


# -------------------------------------------------------------------------------- the file


def test_the_file_is_the_atomic_file_of_the_design(tmp_path):
    path = tmp_path / "X.sid"
    ids_of([[170, 224, 251, 151], [0, 1, 2, 3]], ["B002SQJL9U", "a b"]).save(path)
    wanted = HEADER + "B002SQJL9U\t<a_170> <b_224> <c_251> <d_151>\na b\t<a_0> <b_1> <c_2> <d_3>\n"
    assert path.read_bytes() == wanted.encode()
    assert {p.name for p in tmp_path.iterdir()} == {"X.sid", "X.sid.json"}


def test_a_file_that_is_not_the_one_that_was_written_is_refused(tmp_path):
    path = tmp_path / "X.sid"
    ids_of([[0, 1], [2, 3]]).save(path)
    content = path.read_text()
    for changed in (content.replace("<a_2>", "<a_1>"), content[: content.index("i1")]):
        path.write_text(changed)
        with pytest.raises(ValueError, match=r"X\.sid.*X\.sid\.json"):
            load(path)
    (tmp_path / "X.sid.json").unlink()  # changed on purpose
    assert load(path).items


def test_an_interrupted_write_leaves_no_details_of_another_file(tmp_path, monkeypatch):
    path = tmp_path / "X.sid"
    ids_of([[0, 1], [2, 3]]).save(path)
    with monkeypatch.context() as patch:
        patch.setattr(semantic_ids, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ids_of([[0, 1], [3, 3]]).save(path)
    assert load(path).codes.tolist() == [[0, 1], [3, 3]]


def test_levels_an_item_lacks_are_left_out_and_come_back(tmp_path):
    path = tmp_path / "X.sid"
    ids = ids_of([[1, 2, 3, 4], [1, 2, -1, -1], [-1, -1, 3, 4]], sets=2)
    ids.save(path)
    assert path.read_text().splitlines()[1:] == [
        "i0\t<a_1> <b_2> <A_3> <B_4>",
        "i1\t<a_1> <b_2>",
        "i2\t<A_3> <B_4>",
    ]
    back = load(path, 256)
    assert back.codes.tolist() == ids.codes.tolist()
    assert back.prefixes == ids.prefixes
    assert back.items == ids.items
    assert back.size == 256


def test_text_and_tokens_are_the_papers():
    ids = ids_of([[2, 3, 1, 6], [5, -1, -1, -1]])
    assert ids.text(0) == "<a_2><b_3><c_1><d_6>"
    assert ids.tokens(1) == ["<a_5>"]


def test_three_code_sets_never_share_a_level_name():
    names = [name for number in range(6) for name in prefixes_of(26, number)]
    assert len(set(names)) == len(names)
    assert prefixes_of(3, 0) == ("a", "b", "c")
    assert prefixes_of(3, 1) == ("A", "B", "C")
    assert prefixes_of(3, 2) == ("aa", "ba", "ca")
    with pytest.raises(ValueError, match=r"27"):
        prefixes_of(27, 0)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 12), st.integers(0, 10**6))
def test_round_trip_of_any_code_sets(tmp_path, sets, levels, count, seed):
    random = np.random.default_rng(seed)
    codes = random.integers(0, 50, (count, sets * levels))
    for row, lacks in zip(codes, random.integers(0, sets + 2, count), strict=True):
        if lacks < sets and sets > 1:
            row[lacks * levels : (lacks + 1) * levels] = -1
    codes[0] = np.abs(codes[0])  # every level is in use somewhere, or the file cannot know of it
    codes = np.unique(codes, axis=0)
    ids = ids_of(codes, sets=sets, size=50)
    ids.save(tmp_path / "X.sid")
    back = load(tmp_path / "X.sid", 50)
    assert (back.items, back.prefixes, back.size) == (ids.items, ids.prefixes, ids.size)
    assert np.array_equal(back.codes, ids.codes)


def test_the_size_is_the_largest_code_where_nothing_says_it(tmp_path):
    assert load(write(tmp_path / "X.sid", "a\t<a_0> <b_9>", "b\t<a_3> <b_1>")).size == 10


def test_line_ends_of_other_systems_are_read(tmp_path):
    path = tmp_path / "X.sid"
    path.write_bytes((HEADER + "a\t<a_0> <b_9>\n").replace("\n", "\r\n").encode())
    assert load(path).tokens(0) == ["<a_0>", "<b_9>"]


# -------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a\t<a_1>", "b <a_2>"], r"X\.sid:3:.*'b <a_2>'"),
        (["a\t<a_1>", ""], r"X\.sid:3: "),
        (["a\t<a_1> <b_x>"], r"X\.sid:2:.*'<b_x>'"),
        (["a\t<a_1> <a_2>"], r"X\.sid:2:.*'<a_2>'"),
        (["a\t<a_-1>"], r"X\.sid:2:.*'<a_-1>'"),
        (["a\t<a_1><b_2>"], r"X\.sid:2:.*'<a_1><b_2>'"),
        (["a\t<a_1>", "b\t<a_2>", "a\t<a_3>"], r"X\.sid:4:.*'a'"),
        (["a\t<a_1>", "NA\t<a_2>"], r"X\.sid:3:.*'NA'"),
        (["a\t<a_40000>"], r"X\.sid:2: .*40000"),
        (["a\t<a_1> <b_2>", "b\t<a_1> <b_2>"], r"X\.sid.* a and b .*<a_1><b_2>"),
    ],
)
def test_a_malformed_file_is_refused_with_its_line(tmp_path, lines, message):
    with pytest.raises(ValueError, match=message):
        load(write(tmp_path / "X.sid", *lines))


def test_a_wrong_header_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"X\.sid:1:.*'item_id:token\\tcodes'"):
        load(write(tmp_path / "X.sid", "a\t<a_1>", header="item_id:token\tcodes\n"))


def test_a_missing_file_says_how_to_build_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"X\.sid.*run_recbole_qbert\.py quantize"):
        load(tmp_path / "X.sid")


def test_a_code_beyond_the_table_is_refused(tmp_path):
    path = write(tmp_path / "X.sid", "a\t<a_1> <b_8>")
    assert load(path, 9).size == 9
    with pytest.raises(ValueError, match=r"code 8.* 7.*rq_codes to 9"):
        load(path, 8)


def test_shared_ids_are_refused_by_name():
    require_unique(ids_of([[1, 2], [1, 3]]), "here")
    with pytest.raises(ValueError, match=r"here.* i0 and i2 .*<a_1><b_2>"):
        require_unique(ids_of([[1, 2], [1, 3], [1, 2]]), "here")


def test_codes_follow_the_items_asked_for():
    ids = ids_of([[1, 2], [3, 4], [5, 6]], ["x", "y", "z"])
    assert ids.aligned(["z", "x"], "here").tolist() == [[5, 6], [1, 2]]
    assert ids.aligned(["y"], "here").dtype == np.int16


def test_ids_of_another_data_set_are_refused():
    ids = ids_of([[1, 2], [3, 4], [5, 6]], ["x", "y", "z"])
    with pytest.raises(ValueError, match=r"here.*3 of 4.*p, q, r.*another data set"):
        ids.aligned(["p", "q", "r", "x"], "here")
    with pytest.raises(ValueError, match=r"1 of 4.*p\).*older.*semantic_id_file"):
        ids.aligned(["x", "y", "z", "p"], "here")


# -------------------------------------------------------------------------------- health


def test_health_by_hand():
    before = np.array([[0, 0], [0, 0], [0, 0], [1, 2], [1, 3]])
    after = np.array([[0, 0], [0, 1], [0, 2], [1, 2], [1, 3]])
    figures = health(before, after, 4, ("a", "b"))
    two, three = 0.4 * math.log(0.4), 0.6 * math.log(0.6)
    assert figures["items"] == 5
    assert (figures["unique_before"], figures["unique"]) == (3, 5)
    assert figures["collision_rate_before"] == pytest.approx(3 / 5)
    assert figures["collision_rate"] == 0.0
    assert figures["moved"] == 2
    assert figures["usage_per_level"] == [2 / 4, 4 / 4]
    # Level a: shares 3/5, 2/5. Level b: 1/5, 1/5, 2/5, 1/5.
    wanted = [math.exp(-(two + three)), math.exp(-(two + 3 * 0.2 * math.log(0.2)))]
    assert figures["perplexity_per_level"] == pytest.approx(wanted)
    assert figures["levels"] == ["a", "b"]
    assert figures["codes_per_level"] == 4


def test_levels_that_an_item_lacks_are_no_codes():
    codes = np.array([[0, -1], [1, 0], [2, 1], [3, -1]])
    figures = health(codes, codes, 4, ("a", "A"))
    assert figures["usage_per_level"] == [1.0, 0.5]
    assert figures["perplexity_per_level"] == pytest.approx([4.0, 2.0])


def test_perplexity_is_the_number_of_codes_when_all_are_used_alike():
    codes = np.array([[a, b] for a in range(4) for b in range(8)])
    assert health(codes, codes, 8, "ab")["perplexity_per_level"] == pytest.approx([4, 8])


def test_ids_in_another_encoding_name_the_file(tmp_path):
    (tmp_path / "X.sid").write_bytes(f"{semantic_ids.HEADER}\ncaf\xe9\t<a_1>\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"X\.sid.*UTF-8"):
        semantic_ids.load(tmp_path / "X.sid")


def test_a_code_of_thousands_of_digits_is_named_by_its_line(tmp_path):
    (tmp_path / "X.sid").write_text(f"{semantic_ids.HEADER}\ni0\t<a_{'9' * 5000}>\n")
    with pytest.raises(ValueError, match=r"X\.sid:2"):
        semantic_ids.load(tmp_path / "X.sid")
