"""Transform the interactions by SQL that both engines run: code ids, apply the window, deduplicate, filter, order.

Columns of the interactions: ``line`` (order of the file, unique), ``user_code``, ``item_code`` (integers for this run only),
``rating``, ``seconds``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dataset_prep.amazon.sql_engines import Engine

INTER_HEADER = ("user_id:token", "item_id:token", "rating:float", "timestamp:float")


@dataclass(frozen=True)
class Size:
    """Size of the data after one step, with the columns of the usual table of data sets.

    `sparsity` is 1 - interactions / (users * items), `average_length` is interactions / users; both are 0 without
    interactions.
    """

    step: str
    users: int
    items: int
    interactions: int
    sparsity: float
    average_length: float


def size(step: str, users: int, items: int, interactions: int) -> Size:
    """Derive the other columns from the counts.

    Args:
        step: name of the step.
        users: number of users.
        items: number of items.
        interactions: number of interactions.
    """
    if not interactions:
        return Size(step, 0, 0, 0, 0.0, 0.0)
    return Size(step, users, items, interactions, 1 - interactions / (users * items), interactions / users)


def count(engine: Engine, step: str, table: str) -> Size:
    """Count the users, items and rows of a table.

    Args:
        engine: engine that holds the table.
        step: name of the step.
        table: name of the table.
    """
    sql = f"SELECT count(DISTINCT user_code), count(DISTINCT item_code), count(*) FROM {table}"
    ((users, items, interactions),) = engine.rows(sql)
    return size(step, users, items, interactions)


def code_ids(engine: Engine) -> Size:
    """Make ``coded`` from ``reviews``: ids become integers, which makes the later steps fast."""
    for kind in ("user", "item"):
        engine.table(
            f"{kind}s",
            f"SELECT {kind}_id, {engine.number} AS {kind}_code FROM (SELECT DISTINCT {kind}_id FROM reviews) named",
        )
    engine.table(
        "coded",
        "SELECT line, user_code, item_code, rating, seconds FROM reviews "
        "JOIN users ON users.user_id = reviews.user_id JOIN items ON items.item_id = reviews.item_id",
    )
    counts = "SELECT (SELECT count(*) FROM users), (SELECT count(*) FROM items), (SELECT count(*) FROM coded)"
    ((users, items, interactions),) = engine.rows(counts)
    return size("read", users, items, interactions)


def apply_window(engine: Engine, table: str, after: float | None, before: float | None) -> str:
    """Keep the interactions with ``after <= seconds < before``, and return the new table.

    Args:
        engine: engine that holds the table.
        table: name of the table.
        after: unix seconds; None for no limit.
        before: unix seconds; None for no limit.
    """
    limits = [f"seconds >= CAST({after!r} AS DOUBLE)"] if after is not None else []
    limits += [f"seconds < CAST({before!r} AS DOUBLE)"] if before is not None else []
    engine.table("windowed", f"SELECT * FROM {table} WHERE {' AND '.join(limits)}")
    return "windowed"


def drop_repeats(engine: Engine, table: str) -> tuple[str, int]:
    """Keep the first interaction of each user with each item: the first in time, of equal times the first in the file.

    Few pairs repeat, so only their rows are sorted.

    Returns:
        The new table and the number of dropped rows.
    """
    repeated = f"SELECT user_code, item_code FROM {table} GROUP BY user_code, item_code HAVING count(*) > 1"
    engine.table(
        "later",
        "SELECT line FROM (SELECT t.line, row_number() OVER "
        "(PARTITION BY t.user_code, t.item_code ORDER BY t.seconds, t.line) AS occurrence FROM "
        f"{table} t JOIN ({repeated}) r ON t.user_code = r.user_code AND t.item_code = r.item_code) numbered "
        "WHERE occurrence > 1",
    )
    engine.table(
        "distinct_pairs", f"SELECT * FROM {table} t WHERE NOT EXISTS (SELECT 1 FROM later WHERE later.line = t.line)"
    )
    ((repeats,),) = engine.rows("SELECT count(*) FROM later")
    return "distinct_pairs", int(repeats)


def drop_without_image(engine: Engine, table: str) -> str:
    """Keep the interactions with items in ``pictured``, and return the new table."""
    engine.table(
        "usable",
        f"SELECT * FROM {table} WHERE item_code IN "
        "(SELECT item_code FROM items WHERE item_id IN (SELECT item_id FROM pictured))",
    )
    return "usable"


def k_core(engine: Engine, table: str, min_user: int, min_item: int) -> tuple[str, list[Size]]:
    """Drop users and items with too few rows until there are none; the largest such subset is unique.

    The first round drops most of the rows and writes the others to a table. Later rounds drop ever fewer rows, so they only
    find the rows to drop and subtract them from the counts.

    Args:
        engine: engine that holds `table`.
        table: interactions, each pair of user and item at most once.
        min_user: least rows per user.
        min_item: least rows per item.

    Returns:
        The remaining table, and the size after each round.
    """
    few = {"user": f"n < {min_user}", "item": f"n < {min_item}"}
    enough = f"n >= {min_user}", f"n >= {min_item}"
    for kind in few:
        engine.table(f"{kind}_rows_0", f"SELECT {kind}_code, count(*) AS n FROM {table} GROUP BY {kind}_code")
    rounds: list[Size] = []
    too_few = _counts(engine, 0, few)[3]
    while too_few:
        before, now = len(rounds), len(rounds) + 1
        if not before:
            engine.table("pairs", f"SELECT user_code, item_code FROM {table} WHERE {_among(before, *enough)}")
            for kind in few:
                engine.table(f"{kind}_rows_1", f"SELECT {kind}_code, count(*) AS n FROM pairs GROUP BY {kind}_code")
        else:
            gone = (
                f"SELECT user_code, item_code FROM pairs WHERE {_among(before, few['user'], None)} "
                f"UNION SELECT user_code, item_code FROM pairs WHERE {_among(before, None, few['item'])}"
            )
            engine.table(f"gone_{now}", f"SELECT * FROM ({gone}) candidates WHERE {_among(before, 'TRUE', 'TRUE')}")
            for kind in few:
                engine.table(
                    f"{kind}_rows_{now}",
                    f"SELECT r.{kind}_code, n - coalesce(m, 0) AS n FROM {kind}_rows_{before} r LEFT JOIN "
                    f"(SELECT {kind}_code, count(*) AS m FROM gone_{now} GROUP BY {kind}_code) g "
                    f"ON g.{kind}_code = r.{kind}_code WHERE n > coalesce(m, 0)",
                )
        users, items, interactions, too_few = _counts(engine, now, few)
        rounds.append(size(f"core, round {now}", users, items, interactions))
    if not rounds:
        return table, rounds
    engine.table("core", f"SELECT * FROM {table} WHERE {_among(len(rounds), 'TRUE', 'TRUE')}")
    return "core", rounds


def _counts(engine: Engine, n: int, few: dict[str, str]) -> tuple[int, int, int, int]:
    """Count after round `n`: users, items, interactions, and users and items with too few interactions."""
    counts = [
        f"(SELECT count(*) AS {kind}s, coalesce(sum(n), 0) AS {kind}_rows, "
        f"count(CASE WHEN {which} THEN 1 END) AS few_{kind}s FROM {kind}_rows_{n}) of_{kind}"
        for kind, which in few.items()
    ]
    sql = f"SELECT users, items, user_rows, few_users + few_items FROM {' CROSS JOIN '.join(counts)}"
    ((users, items, interactions, too_few),) = engine.rows(sql)
    return users, items, interactions, too_few


def _among(n: int, users: str | None, items: str | None) -> str:
    """Build the SQL condition that the row's user and item remain after round `n` and their counts meet the conditions."""
    conditions = {"user": users, "item": items}
    return " AND ".join(
        f"{kind}_code IN (SELECT {kind}_code FROM {kind}_rows_{n} WHERE {condition})"
        for kind, condition in conditions.items()
        if condition
    )


def order_items(engine: Engine, table: str) -> None:
    """Make ``placed``: every remaining item, and its first position in the order of interactions."""
    first = f"SELECT item_code, min(seconds) AS seconds FROM {table} GROUP BY item_code"
    engine.table(
        "placed",
        f"SELECT f.item_code, f.seconds, min(t.line) AS line FROM ({first}) f JOIN {table} t "
        "ON t.item_code = f.item_code AND t.seconds = f.seconds GROUP BY f.item_code, f.seconds",
    )


def find_pictured(engine: Engine) -> None:
    """Make ``pictured``: the items whose first metadata record lists an image."""
    first = "SELECT item_id, min(line) AS line FROM metadata GROUP BY item_id"
    engine.table("pictured", f"SELECT m.item_id FROM metadata m JOIN ({first}) f ON f.line = m.line WHERE m.pictured")


def join_metadata(engine: Engine) -> int:
    """Make ``described``, the first metadata record of every placed item; return the number of further records."""
    engine.table(
        "records",
        "SELECT m.line, i.item_code, m.fields FROM metadata m JOIN items i ON i.item_id = m.item_id "
        "WHERE i.item_code IN (SELECT item_code FROM placed)",
    )
    first = "SELECT min(line) AS line FROM records GROUP BY item_code"
    engine.table("described", f"SELECT r.item_code, r.fields FROM records r JOIN ({first}) f ON f.line = r.line")
    ((repeated,),) = engine.rows("SELECT (SELECT count(*) FROM records) - (SELECT count(*) FROM described)")
    return int(repeated)


def item_rows(engine: Engine, described: bool, pictured: bool) -> str:
    """Build the SQL for (item, JSON of its metadata or NULL, whether it is in ``pictured``) in the order of the `.item`
    file.

    Args:
        engine: engine that holds the tables.
        described: use ``described``; otherwise the metadata are NULL.
        pictured: use ``pictured``; otherwise the last column is false.
    """
    fields, image, joins = "CAST(NULL AS STRING)", "FALSE", ""
    if described:
        fields, joins = "d.fields", "LEFT JOIN described d ON d.item_code = p.item_code "
    if pictured:
        image, joins = "x.item_id IS NOT NULL", joins + "LEFT JOIN pictured x ON x.item_id = i.item_id "
    return (
        f"SELECT i.item_id, {fields}, {image} FROM placed p JOIN items i ON i.item_code = p.item_code {joins}"
        "ORDER BY p.seconds, p.line"
    )


def write_interactions(engine: Engine, table: str, path: Path, rated: bool = True) -> None:
    """Write the `.inter` file in the order of time, equal times in file order.

    Args:
        engine: engine that holds the table.
        table: name of the table.
        path: file to write.
        rated: write the column of ratings.
    """
    user, item, rating, seconds = (engine.quote + name + engine.quote for name in INTER_HEADER)
    ratings = f"t.rating AS {rating}, " if rated else ""
    engine.write_tsv(
        f"SELECT u.user_id AS {user}, i.item_id AS {item}, {ratings}t.seconds AS {seconds} FROM {table} t "
        "JOIN users u ON u.user_code = t.user_code JOIN items i ON i.item_code = t.item_code ORDER BY t.seconds, t.line",
        path,
    )
