"""The semantic-ID explorer: the items under each code, as nested ``<details>`` that open without scripts."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from recbole_qbert.experiments.report import id_tree
from recbole_qbert.experiments.report.catalog import Catalog, thumbnails
from recbole_qbert.experiments.report.html import Html, join, tag
from recbole_qbert.quantization.semantic_ids import SemanticIDs

MOST_ITEMS = 18_000  # lines of items, shared among the code sets: about 5 MB
PICTURES_A_CODE = 3  # beside a code of the first level
WORDS_A_CODE = 4
_WORD = re.compile(r"[^\W\d_]{3,}")
_SAY_NOTHING = frozenset("and are can for from has have its not our that the this with you your".split())


@dataclass(frozen=True)
class Explorer:
    """The explorer of semantic IDs.

    Attributes:
        markup: the explorer.
        style: CSS rules that hold the pictures, each once however often it is shown.
        notes: what is left out, one line each.
    """

    markup: Html
    style: str
    notes: tuple[str, ...]


def explorer(ids: SemanticIDs, names: Sequence[str], catalog: Catalog) -> Explorer:
    """Make the explorer.

    Args:
        ids: IDs of ``N`` items.
        names: what to call each code set, in order; the letters of its levels where there are too few.
        catalog: titles and pictures.
    """
    sets = id_tree.code_sets(ids)
    listings = [id_tree.choose(id_tree.root(code_set), MOST_ITEMS // max(len(sets), 1)) for code_set in sets]
    shown = [_items_in_turn(ids, listing) for listing in listings]
    pictures, notes = thumbnails(catalog, [item for several in zip_longest(*shown) for item in several if item])
    view = _View(ids, catalog.titles, {item: number for number, item in enumerate(pictures)})
    parts = []
    for number, listing in enumerate(listings):
        name = names[number] if number < len(names) else " ".join(sets[number].prefixes)
        parts.append(view.code_set(name, listing, open_=not number))
        listed, count = sum(1 for _ in listing.listed()), listing.branch.count
        if listed < count:
            notes.append(f"explorer, {name} codes: {listed:,} of {count:,} items are listed; every count is of all items")
        if count < len(ids.items):
            notes.append(f"explorer, {name} codes: items without them: {len(ids.items) - count:,}")
    style = "".join(f".p{number}{{background-image:url({uri})}}" for number, uri in enumerate(pictures.values()))
    field = tag("input", type="search", placeholder="words of a title, an item token, or <a_170>", aria_label="Find items")
    search = tag("form", field, tag("output", class_="quiet"), id="find", hidden=True)
    return Explorer(join(search, *parts), style, tuple(notes))


def _items_in_turn(ids: SemanticIDs, listing: id_tree.Listing) -> list[str]:
    """List the shown items, one of each first-level code in turn, so that pictures are spread evenly over codes."""
    codes = [[ids.items[listing.branch.of.rows[position]] for position in inner.listed()] for inner in listing.inner]
    return [item for several in zip_longest(*codes) for item in several if item is not None]


class _View:
    def __init__(self, ids: SemanticIDs, titles: dict[str, str], picture: dict[str, int]) -> None:
        self.items, self.titles, self.picture = ids.items, titles, picture
        self.words = [frozenset(_words(titles.get(item, ""))) for item in ids.items]
        self.frequency = Counter(word for words in self.words for word in words)

    def code_set(self, name: str, listing: id_tree.Listing, open_: bool) -> Html:
        root = listing.branch
        used, most = len(root.children), max((child.count for child in root.children), default=1)
        head = tag(
            "summary",
            tag("b", f"{name} codes"),
            f" {' '.join(f'<{prefix}_…>' for prefix in root.of.prefixes)}: {root.count:,} items, {used:,} first codes",
        )
        inner = [self.branch(branch, root.level, most) for branch in listing.inner]
        return tag("details", head, tag("div", *inner, self.left_out(listing), class_="tree"), class_="set", open=open_)

    def branch(self, listing: id_tree.Listing, above: int, most: int) -> Html:
        """Show a code (or several that always go together), its count, common words of its items, and its items."""
        branch, first = listing.branch, above == 0
        code = "".join(
            branch.of.token(level, int(branch.of.codes[branch.start, level])) for level in range(above, branch.level)
        )
        parts: list[object] = [tag("code", code), tag("b", f"{branch.count:,}")]
        if first:
            parts.insert(1, tag("i", class_="bar", style=f"--w:{branch.count / most:.3f}"))
        alone = self.titles.get(self.items[branch.of.rows[branch.start]], "") if branch.count == 1 else ""
        parts.append(tag("span", alone or ", ".join(self.common(branch)), class_="words"))
        if first:
            parts += [p for p in (self.image(position, branch) for position in listing.listed()) if p][:PICTURES_A_CODE]
        items = [self.item(position, branch) for position in listing.places]
        below = [self.branch(inner, branch.level, most) for inner in listing.inner]
        content = [*below, tag("ul", *items) if items else "", self.left_out(listing)]
        return tag("details", tag("summary", *parts), *content, data_prefix=branch.prefix, data_count=branch.count)

    def item(self, position: int, branch: id_tree.Branch) -> Html:
        token = self.items[branch.of.rows[position]]
        title = self.titles.get(token)
        picture = self.image(position, branch)
        rest = branch.of.rest(position, branch.level)
        return tag("li", picture or "", tag("span", title or ""), tag("small", token), tag("code", rest) if rest else "")

    def image(self, position: int, branch: id_tree.Branch) -> Html | None:
        number = self.picture.get(self.items[branch.of.rows[position]])
        return None if number is None else tag("i", class_=f"pic p{number}")

    def left_out(self, listing: id_tree.Listing) -> Html:
        if not listing.left_out:
            return Html("")
        return tag(
            "p",
            f"… and {listing.left_out:,} more items under {listing.branch.prefix or 'other codes'}, not listed",
            class_="more",
        )

    def common(self, branch: id_tree.Branch) -> list[str]:
        """Choose words in at least a third of the titles under a branch, and twice as common there as in all titles."""
        rows = branch.of.rows[branch.start : branch.stop]
        counts = Counter(word for row in rows for word in self.words[row])
        score = {
            word: count * math.log(len(self.items) / self.frequency[word])
            for word, count in counts.items()
            if count > 1 and 3 * count >= len(rows) and count * len(self.items) >= 2 * self.frequency[word] * len(rows)
        }
        chosen: list[str] = []
        for word in sorted(score, key=lambda word: (-score[word], word)):
            if not any(word.startswith(other) or other.startswith(word) for other in chosen):  # electrode, electrodes
                chosen.append(word)
        return chosen[:WORDS_A_CODE]


def _words(title: str) -> Iterable[str]:
    return (word for word in map(str.lower, _WORD.findall(title)) if word not in _SAY_NOTHING)
