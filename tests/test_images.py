"""Download against a local server: what is stored, what is a miss, how hosts are asked, what a kill leaves."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime, timezone
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("aiohttp")

from aiohttp import web

from dataset_prep.images import download as images
from dataset_prep.images import image_files, image_lists, rate_limits
from dataset_prep.images.download import ImagesReport, Options, download
from dataset_prep.images.image_lists import survey
from dataset_prep.images.image_manifest import Manifest
from dataset_prep.images.partial_files import PartialFile
from recbole_qbert.data.atomic_files import AtomicFormat
from recbole_qbert.data.builtin_encoders import find_images
from recbole_qbert.utils.io import file_lock
from tests.helpers import files
from tests.image_server import Answer, ImageServer, body, broken, endless, silent, status, versioned
from tests.test_image_files import HOSTILE, picture

FAST: dict[str, Any] = {"retries": 2, "backoff": 0.001, "per_host_rate": 5000, "failures_before_hold": 100}


class Shop:
    """A data set folder, a server, and a download with short waits."""

    def __init__(self, folder: Path, server: ImageServer) -> None:
        self.folder, self.server = folder, server

    def items(self, listed: dict[str, list[str]]) -> None:
        lines = "".join(f"{item}\ttitle\t{' '.join(urls)}\n" for item, urls in listed.items())
        header = "item_id:token\ttitle:token_seq\timage_urls:token_seq\n"
        (self.folder / "X.item").write_text(header + lines, encoding="utf-8")

    def run(self, **options: Any) -> ImagesReport:
        return download(self.folder, "X", options=Options(**{**FAST, **options}), progress=False)

    def one(self, *answers: Answer, **options: Any) -> dict[str, Any]:
        """The row of the only image of the only item."""
        self.items({"A": [self.server.put("/a", *answers)]})
        self.run(**options)
        (row,) = self.rows()
        return row

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "images.jsonl").read_text(encoding="utf-8").splitlines()]

    def stored(self) -> dict[str, bytes]:
        return files(self.folder / "images")

    def parts(self) -> list[Path]:
        return list((self.folder / "images.parts").glob("*"))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ImageServer]:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    with ImageServer() as running:
        yield running


@pytest.fixture
def shop(tmp_path: Path, server: ImageServer) -> Shop:
    return Shop(tmp_path, server)


# ------------------------------------------------------------------------------------------------- what is stored


def test_pictures_are_found_where_features_look_for_them(shop: Shop) -> None:
    put, bodies = shop.server.put, [picture(n) for n in range(14)]
    listed = {
        "A": [put("/gone"), put("/a.png?x=%2B", body(bodies[0]))],
        "B": [],
        "é漢-1": [put(f"/{n}", body(bodies[n])) for n in range(1, 13)],
        "C": [put("/c", body(picture(13, kind="PNG")))],
    }
    shop.server.answers.pop("/gone")
    shop.items(listed)
    report = shop.run()
    found = find_images(shop.folder / "images", [*listed, "D"])
    assert [[path.name for path in paths][:2] for paths in found] == [
        ["001.jpg"],
        [],
        ["000.jpg", "001.jpg"],
        ["000.png"],
        [],
    ]
    assert [path.read_bytes() for path in found[2]] == bodies[1:13]  # in the order of the list, beyond ten, too
    assert [(row["item"], row["n"]) for row in shop.rows()] == [
        (i, n) for i, urls in listed.items() for n in range(len(urls))
    ]
    total = sum(map(len, shop.stored().values()))
    expected = ImagesReport("X", 4, 3, 15, 14, total, {"http_404": 1}, 0, 14, report.seconds)
    assert report == expected
    assert json.loads((shop.folder / "images.json").read_text()).items() >= {"ok": 14, "misses": {"http_404": 1}}.items()
    assert "/a.png?x=%2B" in shop.server.count()  # as it stands in the list
    assert sorted(os.listdir(shop.folder)) == ["X.item", "images", "images.json", "images.jsonl"]


def test_a_row_describes_the_file(shop: Shop) -> None:
    data = picture(side=20)
    row = shop.one(versioned(data, Last_Modified="Thu, 01 Jan 2015 00:00:00 GMT"))
    assert (row["status"], row["file"], row["bytes"], row["width"], row["height"]) == ("ok", "A/000.jpg", len(data), 20, 20)
    assert (row["etag"], row["last_modified"], row["attempts"]) == ('"v1"', "Thu, 01 Jan 2015 00:00:00 GMT", 1)
    assert row["sha256"] == hashlib.sha256(data).hexdigest()
    assert row["original"] is True


# ------------------------------------------------------------------------------------------------- answers, good and bad


PICTURE = picture(3)
HUGE = 1 << 20


@pytest.mark.process
@pytest.mark.parametrize(
    ("answers", "reason", "transient", "requests"),
    [
        ([status(404)], "http_404", False, 1),
        ([status(410)], "http_410", False, 1),
        ([status(403)], "http_403", False, 1),
        ([status(204)], "http_204", False, 1),
        ([status(500)], "http_500", True, 3),
        ([status(429)], "http_429", True, 3),
        ([status(500), status(502), body(PICTURE)], None, False, 3),
        ([status(429, Retry_After="0"), body(PICTURE)], None, False, 2),
        ([silent], "timeout", True, 3),
        ([silent, body(PICTURE)], None, False, 2),
        ([broken(PICTURE, 100)], "broken_transfer", True, 3),
        ([broken(PICTURE, 100), body(PICTURE)], None, False, 2),
        ([broken(PICTURE, len(PICTURE), len(PICTURE) + 9)], "broken_transfer", True, 3),  # declares too much
        ([broken(PICTURE, len(PICTURE), len(PICTURE) - 200)], "broken_image", False, 1),  # declares too little
        ([body(b"<html>sorry</html>")], "not_an_image", False, 1),
        ([body(PICTURE, Content_Type="text/html")], None, False, 1),  # the bytes say what they are
        ([body(PICTURE, Content_Encoding="gzip")], "content_encoding", False, 1),
        ([body(bytes(HUGE + 1))], "too_large", False, 1),
        ([broken(b"", 0, HUGE + 1)], "too_large", False, 1),  # known from the header
        ([endless()], "too_large", False, 1),
        ([body(PICTURE, X_Robots_Tag="noindex, NoAI")], "noai", False, 1),
        ([body(PICTURE, X_Robots_Tag="somebot: noimageai")], "noai", False, 1),
        ([body(PICTURE, X_Robots_Tag="noindex")], None, False, 1),
        ([status(301, Location="ftp://127.0.0.1/a")], "bad_redirect", False, 1),
        ([status(302, Location="file:///etc/passwd")], "bad_redirect", False, 1),
        ([status(302)], "http_302", False, 1),
        ([status(302, Location="/a")], "too_many_redirects", False, 6),  # a loop
    ],
)
def test_answers(shop: Shop, answers: list[Answer], reason: str | None, transient: bool, requests: int) -> None:
    limits = {"read_timeout": 0.3 if silent in answers else 30, "max_bytes": HUGE}
    row = shop.one(*answers, **limits)
    assert (row["status"], row["reason"], row["transient"]) == ("miss" if reason else "ok", reason, transient)
    assert len(shop.server.asked) == requests
    assert shop.stored() == ({} if reason else {"A/000.jpg": PICTURE})
    assert row["attempts"] == (1 if reason in ("too_many_redirects", "bad_redirect") else requests)
    assert not shop.parts()
    shop.run(**limits)
    assert len(shop.server.asked) == requests * (2 if transient else 1)  # only what may pass is tried again


def test_redirects_are_followed_and_each_host_is_asked_in_its_turn(shop: Shop) -> None:
    put = shop.server.put
    put("/3", body(PICTURE))
    put("/2", status(308, Location="3"))  # relative
    put("/1", status(303, Location=shop.server.url("/2", "localhost")))
    shop.items({"A": [put("/0", status(301, Location="/1#part"))]})
    assert shop.run().ok == 1
    assert [asked.path for asked in shop.server.asked] == ["/0", "/1", "/2", "/3"]
    assert shop.rows()[0]["url"] == shop.server.url("/0")


@pytest.mark.parametrize(
    "url",
    ["ftp://h/a.jpg", "data:image/gif;base64,AA", "javascript:1", "http://", "http:///a", "/etc/passwd", "//h/a", "http://h:99999/",
     "http://[::1", "http://@[/", "http://" + "a" * 70 + ".example/", "http://a..b/x", "http://\u2603:x/"],
)  # fmt: skip
def test_what_is_no_web_address_is_asked_of_nobody(shop: Shop, url: str) -> None:
    shop.items({"A": [url]})
    shop.run()
    assert (shop.rows()[0]["reason"], shop.rows()[0]["transient"]) == ("bad_url", False)


def test_a_host_that_is_not_there(shop: Shop) -> None:
    shop.items({"A": ["http://127.0.0.1:9/a"], "B": ["http://no.such.host.invalid/a"]})
    report = shop.run(retries=1)
    assert report.misses == {"connection": 1, "host_not_found": 1}
    assert report.transient == 2


def test_who_asks(shop: Shop) -> None:
    shop.one(body(PICTURE), user_agent="tester (me@example.org)")
    headers = shop.server.asked[0].headers
    assert (headers["User-Agent"], headers["Accept-Encoding"]) == ("tester (me@example.org)", "identity")
    assert "Cookie" not in headers


# ------------------------------------------------------------------------------------------------- item ids are data


def test_hostile_item_ids_touch_nothing(shop: Shop) -> None:
    url = shop.server.put("/a", body(PICTURE))
    hostile = [item for item in HOSTILE if item.isprintable()]  # a file of UTF-8 lines can hold no others
    shop.folder = shop.folder / "deep" / "deeper"
    shop.folder.mkdir(parents=True)
    shop.items({**{item: [url] for item in hostile}, "fine": [url]})
    report = shop.run()
    assert report.misses == {"unsafe_item_id": len(hostile)} and report.ok == 1
    assert len(shop.server.asked) == 1
    outside = {path for path in shop.folder.parents[1].rglob("*") if shop.folder not in path.parents}
    assert outside == {shop.folder, shop.folder.parent}
    assert list(shop.stored()) == ["fine/000.jpg"]


# ------------------------------------------------------------------------------------------------- manners


def test_the_same_url_of_two_items_is_stored_for_both_but_not_asked_for_at_once(shop: Shop) -> None:
    url = shop.server.put("/same", shop.server.slow(PICTURE))
    shop.items({"A": [url], "B": [url], "C": [url]})
    assert shop.run().ok == 3
    assert set(shop.stored().values()) == {PICTURE} and len(shop.stored()) == 3
    assert shop.server.most_busy == 1


def crowd(server: ImageServer, size: int) -> Answer:
    """Answers only once `size` requests wait together; a moment later, so that one too many would be seen."""
    together = threading.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        if server.busy >= size:
            together.set()
        while not together.is_set():
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.02)
        return web.Response(body=PICTURE)

    return answer


@pytest.mark.parametrize(("limits", "most"), [({"per_host": 3}, 3), ({"per_host": 9, "connections": 2}, 2)])
def test_requests_at_once_are_limited_and_used(shop: Shop, limits: dict[str, int], most: int) -> None:
    answer = crowd(shop.server, most)
    shop.items({f"I{k}": [shop.server.put(f"/{k}", answer)] for k in range(12)})
    assert shop.run(**limits).ok == 12
    assert shop.server.most_busy == most


def test_the_limit_is_each_host_s_own(shop: Shop) -> None:
    answer = crowd(shop.server, 4)  # two of each host
    hosts = ("127.0.0.1", "localhost")
    shop.items({f"I{k}": [shop.server.put(f"/{k}", answer, host=hosts[k % 2])] for k in range(12)})
    assert shop.run(per_host=2).ok == 12
    assert shop.server.most_busy == 4


def test_requests_start_no_faster_than_the_rate(shop: Shop) -> None:
    shop.items({f"I{k}": [shop.server.put(f"/{k}", body(PICTURE))] for k in range(9)})
    started = time.monotonic()
    shop.run(per_host_rate=20, per_host=9)
    for number, asked in enumerate(shop.server.asked):
        assert asked.at - started >= number / 20


@pytest.mark.process
@pytest.mark.parametrize("code", [429, 503])
def test_retry_after_holds_for_the_whole_host(shop: Shop, code: int) -> None:
    put = shop.server.put
    shop.items({"A": [put("/a", status(code, Retry_After="1"), body(PICTURE))], "B": [put("/b", body(PICTURE))]})
    assert shop.run(per_host=1).ok == 2
    first, *later = shop.server.asked
    assert first.path == "/a" and sorted(asked.path for asked in later) == ["/a", "/b"]
    assert min(asked.at for asked in later) - first.at >= 1.0


def test_retry_after_as_a_date() -> None:
    date = format_datetime(datetime.fromtimestamp(1_000_090, timezone.utc), usegmt=True)
    assert rate_limits.retry_after(date, 1_000_000.0) == 90.0
    assert rate_limits.retry_after(date, 2_000_000.0) == 0.0
    assert [rate_limits.retry_after(value, 0.0) for value in (None, "", "soon", "-5", "1.5", "9" * 40)] == [None] * 6


def test_a_host_that_asks_for_an_hour_is_left_alone(shop: Shop) -> None:
    put = shop.server.put
    asked = [put(f"/{k}", status(503, Retry_After="3600")) for k in range(9)]
    shop.items({**{f"I{k}": [url] for k, url in enumerate(asked)}, "L": [put("/l", body(PICTURE), host="localhost")]})
    report = shop.run(per_host=1)
    assert report.misses == {"http_503": 1, "host_left_alone": 8} and report.transient == 9 and report.ok == 1
    assert shop.server.count() == {"/0": 1, "/l": 1}
    shop.server.answers.update({f"/{k}": [body(PICTURE)] for k in range(9)})
    assert shop.run().ok == 10


def test_a_host_that_keeps_failing_gets_rests_and_is_then_left_alone(shop: Shop) -> None:
    shop.items({f"I{k}": [shop.server.put(f"/{k}", status(500))] for k in range(50)})
    report = shop.run(per_host=1, failures_before_hold=4, hold=0.1)
    times = [asked.at for asked in shop.server.asked]
    assert len(times) == 4 + rate_limits.MAX_HOLDS  # then one question after each rest
    assert np.all(np.diff(times)[3:] >= [0.1, 0.2, 0.4])
    assert sum(report.misses.values()) == 50 and report.misses["host_left_alone"] > 40


def test_a_host_that_recovers_is_asked_on(shop: Shop) -> None:
    spell = [*[status(500)] * (2 + rate_limits.MAX_HOLDS), body(PICTURE)]  # one more failure and it would be left alone
    url = shop.server.put("/a", *spell, *spell)
    shop.items({"A": [url], "B": [url]})
    assert shop.run(failures_before_hold=3, hold=0.02, retries=9).ok == 2


def test_pauses_grow_and_are_the_same_for_the_same_url() -> None:
    options = Options(backoff=1.0)
    pauses = [rate_limits.pause(options, "http://h/a", attempt) for attempt in range(1, 12)]
    assert pauses == [rate_limits.pause(options, "http://h/a", attempt) for attempt in range(1, 12)]
    assert all(2 ** (k - 1) / 2 <= pauses[k - 1] <= 2 ** (k - 1) for k in range(1, 7))
    assert max(pauses) <= rate_limits.MAX_BACKOFF
    assert pauses[0] != rate_limits.pause(options, "http://h/b", 1)


# ------------------------------------------------------------------------------------------------- going on


def test_what_is_there_is_not_asked_for_again(shop: Shop) -> None:
    put = shop.server.put
    shop.items({"A": [put("/a", versioned(PICTURE))], "B": [put("/b", status(404))]})
    shop.run()
    before = files(shop.folder)
    report = shop.run()
    assert len(shop.server.asked) == 2
    assert files(shop.folder) == before and report.fetched == 0
    shop.server.answers["/b"] = [body(PICTURE)]
    assert shop.run(retry_missing=True).fetched == 1
    (shop.folder / "images" / "A" / "000.jpg").write_bytes(b"cut")
    assert shop.run().ok == 2
    assert shop.stored() == {"A/000.jpg": PICTURE, "B/000.jpg": PICTURE}


@pytest.mark.parametrize("header", [{"ETag": '"v1"'}, {"Last_Modified": "Thu, 01 Jan 2015 00:00:00 GMT", "ETag": 'W/"1"'}])
def test_a_broken_transfer_is_continued(shop: Shop, header: dict[str, str]) -> None:
    good = versioned(PICTURE, header["ETag"], **{k: v for k, v in header.items() if k != "ETag"})
    row = shop.one(broken(PICTURE, 700, None, **header), retries=0)
    assert row["reason"] == "broken_transfer" and len(shop.parts()) == 1
    shop.server.answers["/a"] = [good]
    assert shop.run(retries=0).ok == 1
    assert shop.server.asked[-1].headers["Range"] == "bytes=700-"
    assert shop.stored() == {"A/000.jpg": PICTURE} and not shop.parts()


@pytest.mark.parametrize("header", [{}, {"ETag": 'W/"1"'}, {"ETag": '"\xff"'}])
def test_without_a_validator_it_starts_anew(shop: Shop, header: dict[str, str]) -> None:
    assert shop.one(broken(PICTURE, 700, None, **header), versioned(PICTURE))["status"] == "ok"
    assert "Range" not in shop.server.asked[-1].headers


def test_a_changed_picture_is_not_glued_to_the_part_of_the_old_one(shop: Shop) -> None:
    new = picture(4)
    assert shop.one(broken(PICTURE, 700, ETag='"v1"'), versioned(new, '"v2"'))["etag"] == '"v2"'
    assert shop.server.asked[-1].headers["If-Range"] == '"v1"'
    assert shop.stored() == {"A/000.jpg": new}


@pytest.mark.parametrize(
    "content_range",
    ["bytes 0-99/100", "bytes 699-1000/1001", f"bytes 700-799/{len(PICTURE)}", "bytes 700-799/*", "", "nonsense"],
)
def test_an_answer_with_another_range_is_not_believed(shop: Shop, content_range: str) -> None:
    wrong = status(206, Content_Range=content_range, ETag='"v1"')
    assert shop.one(broken(PICTURE, 700, ETag='"v1"'), wrong, versioned(PICTURE))["attempts"] == 3
    assert shop.stored() == {"A/000.jpg": PICTURE}


def test_a_part_that_is_all_there_is(shop: Shop) -> None:
    answers = (broken(PICTURE, len(PICTURE), len(PICTURE) + 5, ETag='"v1"'), versioned(PICTURE))
    assert shop.one(*answers)["status"] == "ok"
    assert shop.server.asked[-1].headers["Range"] == f"bytes={len(PICTURE)}-"  # answered by 416
    assert shop.stored() == {"A/000.jpg": PICTURE}


def test_another_url_replaces_a_picture_and_a_shorter_list_removes_one(shop: Shop) -> None:
    put, other = shop.server.put, picture(5, kind="PNG")
    a, b, c = put("/a", body(PICTURE)), put("/b", body(other)), put("/c", status(404))
    shop.items({"A": [a, a], "B": [a], "C": [a]})
    shop.run()
    shop.items({"A": [b], "B": [c], "C": [a]})
    report = shop.run()
    assert shop.stored() == {"A/000.png": other, "C/000.jpg": PICTURE}  # B has none: not the one of its old list
    assert (report.images, report.ok, len(shop.rows())) == (3, 2, 3)


def test_revalidation(shop: Shop) -> None:
    put, new = shop.server.put, picture(6)
    answers = {"/a": versioned(PICTURE), "/b": versioned(PICTURE), "/c": versioned(PICTURE), "/d": versioned(PICTURE)}
    shop.items({path[1:].upper(): [put(path, answer)] for path, answer in answers.items()})
    shop.run()
    changes = {"/b": versioned(new, '"v2"'), "/c": status(404), "/d": body(b"<html>")}
    for path, answer in changes.items():
        put(path, answer)
    report = shop.run(revalidate=True)
    assert shop.server.asked[-1].headers["If-None-Match"] == '"v1"'
    assert report.fetched == 1 and report.ok == 4  # a picture is not lost because its server no longer has it
    assert shop.stored() == {"A/000.jpg": PICTURE, "B/000.jpg": new, "C/000.jpg": PICTURE, "D/000.jpg": PICTURE}
    assert {row["item"]: row["etag"] for row in shop.rows()} == {"A": '"v1"', "B": '"v2"', "C": '"v1"', "D": '"v1"'}


def test_first_images_only_and_then_the_others(shop: Shop) -> None:
    shop.items({"A": [shop.server.put(f"/{k}", body(picture(k))) for k in range(3)]})
    assert shop.run(max_images=1).images == 1
    assert shop.run().images == 3
    assert len(shop.server.asked) == 3
    assert shop.run(max_images=1).images == 3  # a limit on what is fetched, not on what is kept


def test_two_sizes_do_not_mix(shop: Shop) -> None:
    assert shop.one(body(picture(side=40)), max_side=20)["width"] == 20
    with pytest.raises(ValueError, match=r"max_side 20\b.* None"):
        shop.run()
    assert shop.run(max_side=20).ok == 1


# ------------------------------------------------------------------------------------------------- kills and signals

SCRIPT = """
import sys
from pathlib import Path
from dataset_prep.images.download import Options, download
download(Path(sys.argv[1]), "X", options=Options(per_host_rate=5000, per_host=4), progress=False)
"""


def started(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder)], stderr=subprocess.DEVNULL)


def interrupt(shop: Shop, chunks: int, number: int, hold: bool) -> int:
    """Start a download, send it a signal once the server has sent so many chunks; its exit status.

    `hold`: the server sends nothing more until then, so that it cannot be too late.
    """
    reached, stop_at = threading.Event(), shop.server.chunks + chunks

    def on_chunk() -> None:
        if shop.server.chunks >= stop_at and not reached.is_set():
            shop.server.held = hold
            reached.set()

    shop.server.on_chunk = on_chunk
    process = started(shop.folder)
    try:
        assert reached.wait(60)
        process.send_signal(number)
        return process.wait(60)
    finally:
        process.kill()
        process.wait()
        shop.server.held = False


def many(shop: Shop, count: int) -> None:
    """Items with pictures of 13 chunks that come slowly; some are misses, two share a URL."""
    urls = [shop.server.put(f"/{k}", shop.server.slow(picture(k, side=190, kind="BMP"))) for k in range(count)]
    shop.server.put("/5", status(404))
    shop.server.put("/6", shop.server.slow(b"no picture" * 5_000))
    shop.items({f"I{k}": [url] for k, url in enumerate(urls)} | {"twice": [urls[0]]})


def whole_urls(shop: Shop) -> set[str]:
    """Paths whose body is complete on disk."""
    heads = [path.read_bytes().split(b"\n", 1)[0] for path in (shop.folder / "images.parts").glob("*.full")]
    paths = {"/" + json.loads(head)["url"].rsplit("/", 1)[1] for head in heads}
    return paths | {f"/{path.parent.name[1:]}" for path in (shop.folder / "images").glob("I*/*")}


@pytest.mark.process
def test_killed_again_and_again_it_ends_in_the_same_files(shop: Shop) -> None:
    many(shop, 24)
    reference = Shop(shop.folder.parent / (shop.folder.name + "-reference"), shop.server)
    reference.folder.mkdir()
    many(reference, 24)
    reference.run()
    shop.server.asked.clear()
    rng, complete = random.Random(7), []
    for _ in range(5):
        assert interrupt(shop, rng.randint(15, 45), signal.SIGKILL, hold=False) == -signal.SIGKILL
        assert not (shop.folder / "images.json").exists()
        complete.append((len(shop.server.asked), whole_urls(shop)))
    assert started(shop.folder).wait(60) == 0
    assert files(shop.folder) == files(reference.folder)
    assert 3 < len(complete[-1][1]) < 24  # the kills came in the middle
    for asked, whole in complete:
        again = [a.path for a in shop.server.asked[asked:] if a.path in whole - {"/0"}]  # /0 is listed twice
        assert again == []
    assert sum("Range" in asked.headers for asked in shop.server.asked) >= 5
    assert len(shop.server.asked) <= 25 + 5 * 4  # nothing but what was under way


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize(
    "step", [(PartialFile, "complete"), (image_files, "store"), (Manifest, "append"), (PartialFile, "remove")]
)
def test_a_kill_between_two_steps(shop: Shop, step: tuple[Any, str], before: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name = step
    original = getattr(owner, name)

    def killed(*args: Any) -> Any:
        if not before:
            original(*args)
        raise SystemExit("killed")

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killed)
        with pytest.raises(SystemExit, match="killed"):
            shop.one(versioned(PICTURE))
    assert shop.run().ok == 1
    assert shop.rows()[0]["attempts"] == 1
    assert sorted(files(shop.folder)) == ["X.item", "images.json", "images.jsonl", "images/A/000.jpg"]
    assert shop.stored()["A/000.jpg"] == PICTURE
    brought = [asked for asked in shop.server.asked if asked.headers.get("Range") != f"bytes={len(PICTURE)}-"]
    assert len(brought) == 1  # another request may ask whether anything is missing, and nothing is


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_good_order(shop: Shop, number: int) -> None:
    many(shop, 12)
    assert interrupt(shop, 100, number, hold=True) == -number
    rows = shop.rows()
    assert rows and {row["status"] for row in rows} <= {"ok", "miss"}
    assert {row["file"] for row in rows if row["file"]} == set(shop.stored())
    shop.server.asked.clear()
    report = shop.run()
    assert (report.ok, report.misses) == (11, {"http_404": 1, "not_an_image": 1})
    assert any("Range" in asked.headers for asked in shop.server.asked)


def test_signals_of_the_caller_come_back(shop: Shop) -> None:
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda *_: None) for number in numbers]
    ours = [signal.getsignal(number) for number in numbers]
    try:
        shop.one(body(PICTURE))
        assert [signal.getsignal(number) for number in numbers] == ours
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def test_it_runs_in_a_thread(shop: Shop) -> None:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(shop.one(body(PICTURE))["status"]))
    thread.start()
    thread.join()
    assert results == ["ok"]


def test_a_line_that_was_cut_off_counts_for_nothing(shop: Shop) -> None:
    shop.items({k: [shop.server.put(f"/{k}", body(PICTURE))] for k in "AB"})
    shop.run()
    manifest, before = shop.folder / "images.jsonl", files(shop.folder)
    manifest.write_bytes(manifest.read_bytes()[:-20])
    assert shop.run().ok == 2
    assert shop.server.count() == {"/A": 1, "/B": 2}
    assert files(shop.folder) == before


# ------------------------------------------------------------------------------------------------- inputs and refusals


def test_clear_refusals(shop: Shop, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"X\.item: no such file"):
        shop.run()
    item = tmp_path / "X.item"
    header = "item_id:token\timage_urls:token_seq\n"
    for text, message in [
        ("", r"X\.item:1: no column item_id, image_urls"),
        ("item_id:token\ttitle:token_seq\nA\tb\n", r"X\.item:1: no column image_urls.*item_id, title"),
        (header + "A\t\nB\n", r"X\.item:3: 1 cells.* 2 "),
        (header + "A\t\nB\t\nA\t\n", r"X\.item:4: item 'A'.* line 2"),
        (header + "A\t" + "x" * 140_000, r"X\.item:\d: field larger"),
        (header + "A\t\udcff\n", r"X\.item:\d: .*utf-8"),
    ]:
        item.write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(ValueError, match=message):
            shop.run()
        assert sorted(os.listdir(tmp_path)) == ["X.item"]
    shop.items({"A": []})
    (tmp_path / "images.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"images\.jsonl:1: "):
        shop.run()


def test_items_whose_folders_are_one_are_refused_where_the_file_system_says_so(shop: Shop, tmp_path: Path) -> None:
    shop.items({"a": [], "A": []})
    assert survey(tmp_path / "X.item", None) == 0
    (tmp_path / "x.ITEM").touch()  # as if upper and lower case were the same
    with pytest.raises(ValueError, match=r"line 2\b"):
        survey(tmp_path / "X.item", None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per_host": 0}, "per_host is 0"),
        ({"per_host_rate": float("nan")}, "per_host_rate is nan"),
        ({"retries": -1}, "retries is -1"),
        ({"max_images": 0}, "max_images is 0"),
        ({"user_agent": "a\r\nX: y"}, "user_agent"),
        ({"user_agent": ""}, "user_agent"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Options(**options)


def test_one_download_a_folder(shop: Shop) -> None:
    shop.items({"A": []})
    with file_lock(shop.folder), pytest.raises(ValueError, match=re.escape(str(shop.folder))):
        shop.run()
    assert asdict(shop.run())["items"] == 1


def test_a_full_disk_is_said_and_loses_nothing(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    (shop.folder / "images.json").write_text("{}")
    with monkeypatch.context() as patch:
        patch.setattr(image_files, "store", full)
        with pytest.raises(ValueError, match=r"No space left on device"):
            shop.one(body(PICTURE))
    assert not (shop.folder / "images.json").exists()  # it told of an earlier run
    assert shop.run().ok == 1
    assert len(shop.server.asked) == 1  # its body was there


def test_without_aiohttp_it_says_what_to_install(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"'recbole-qbert\[images\]'"):
        shop.run()


def test_few_images_wait_at_a_time(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list is read as it is worked off: a window of it is in memory, never the whole."""
    monkeypatch.setattr(images, "WORKERS", 5)
    read: list[str] = []
    original = image_lists.read_items

    def counted(path: Path, form: AtomicFormat) -> Iterator[Any]:
        for row in original(path, form):
            read.append(row[1])
            yield row

    monkeypatch.setattr(images, "read_items", counted)
    ahead: list[int] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        ahead.append(len(read) - len(shop.server.asked))
        return web.Response(body=PICTURE)

    shop.items({f"I{k}": [shop.server.put(f"/{k}", answer)] for k in range(60)})
    assert shop.run().ok == 60
    assert max(ahead) <= 5
