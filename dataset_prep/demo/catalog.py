"""Draw the items of the synthetic demo, their product pages and their pictures.

An item has a few latent attributes. Colour, style, material, price tier and brand mean the same in every domain. Each
domain has
its own categories, all of one structure: five projects, each with a base, a tool, a consumable and a storage piece. Text and
picture are two noisy views of these attributes.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Name -> (colour, words a page may use for it).
COLOURS: dict[str, tuple[tuple[int, int, int], tuple[str, ...]]] = {
    "red": ((200, 35, 45), ("Red", "Crimson", "Ruby")),
    "orange": ((240, 130, 30), ("Orange", "Tangerine", "Amber")),
    "yellow": ((240, 205, 50), ("Yellow", "Mustard", "Lemon")),
    "green": ((60, 150, 70), ("Green", "Forest", "Sage")),
    "teal": ((35, 160, 165), ("Teal", "Turquoise", "Aqua")),
    "blue": ((45, 80, 190), ("Blue", "Navy", "Cobalt")),
    "purple": ((130, 60, 160), ("Purple", "Plum", "Violet")),
    "grey": ((110, 115, 120), ("Grey", "Slate", "Charcoal")),
}
STYLES = {
    "modern": ("Modern", "Minimalist", "Sleek"),
    "rustic": ("Rustic", "Farmhouse", "Country"),
    "floral": ("Floral", "Botanical", "Blossom"),
    "geometric": ("Geometric", "Graphic", "Checked"),
    "coastal": ("Coastal", "Nautical", "Striped"),
    "retro": ("Retro", "Vintage", "Mid-Century"),
}
# Name -> (background of the picture, words).
MATERIALS: dict[str, tuple[tuple[int, int, int], tuple[str, ...]]] = {
    "steel": ((225, 230, 235), ("Steel", "Stainless")),
    "wood": ((235, 218, 190), ("Wood", "Oak")),
    "ceramic": ((250, 244, 235), ("Ceramic", "Stoneware")),
    "glass": ((220, 242, 246), ("Glass", "Crystal")),
    "cotton": ((246, 238, 242), ("Cotton", "Woven")),
    "bamboo": ((232, 238, 208), ("Bamboo", "Natural Fiber")),
}
TIERS = {"budget": ("Value", "Basic"), "classic": ("Classic", "Everyday"), "premium": ("Premium", "Deluxe")}
BRANDS = ("Alderwick", "Brightmoor", "Calloway & Finch", "Dunmere", "Elmhollow", "Farrow Lane",
          "Glenhythe", "Harrowgate", "Inkwell Row", "Juniper Hill", "Kestrel Bay", "Larkspur")  # fmt: skip
ROLES = 4  # base, tool, consumable, storage: the order in which a project is walked through


@dataclass(frozen=True)
class Domain:
    """The vocabulary of a domain: item-id prefix, department, and for each project its name and one noun per role."""

    name: str
    prefix: str
    department: str
    projects: dict[str, tuple[str, str, str, str]]


DOMAINS = {
    d.name: d
    for d in (
        Domain("Demo_Kitchen", "DK", "Kitchen & Dining", {
            "Coffee Making": ("Coffee Grinder", "Coffee Dripper", "Coffee Filter", "Coffee Canister"),
            "Baking": ("Mixing Bowl", "Dough Whisk", "Baking Parchment", "Cake Box"),
            "Tea Time": ("Tea Kettle", "Tea Infuser", "Loose Leaf Tea", "Tea Tin"),
            "Grilling": ("Grill Pan", "Grill Tongs", "Spice Rub", "Spice Rack"),
            "Table Serving": ("Serving Platter", "Salad Servers", "Table Napkin", "Cutlery Tray"),
        }),
        Domain("Demo_Garden", "DG", "Garden & Outdoor", {
            "Planting": ("Planter", "Hand Trowel", "Potting Soil", "Plant Stand"),
            "Lawn Care": ("Reel Mower", "Lawn Edger", "Grass Seed", "Tool Rack"),
            "Watering": ("Watering Can", "Spray Nozzle", "Hose Washer", "Hose Reel"),
            "Bird Watching": ("Bird House", "Bird Feeder", "Bird Seed", "Seed Bin"),
            "Garden Evenings": ("Fire Pit", "Garden Lantern", "Citronella Candle", "Deck Box"),
        }),
        Domain("Demo_Studio", "DS", "Studio & Craft", {
            "Painting": ("Tabletop Easel", "Paint Brush", "Acrylic Paint", "Canvas Rack"),
            "Drawing": ("Sketchbook", "Drawing Pencil", "Kneaded Eraser", "Pencil Case"),
            "Pottery": ("Pottery Wheel", "Carving Tool", "Pottery Glaze", "Drying Shelf"),
            "Sewing": ("Sewing Machine", "Fabric Scissors", "Sewing Thread", "Notions Box"),
            "Paper Craft": ("Cutting Mat", "Paper Punch", "Cardstock", "Paper Drawer"),
        }),
    )
}  # fmt: skip
PROJECTS = 5
CATEGORIES = PROJECTS * ROLES  # category c is role c % ROLES of project c // ROLES


@dataclass(frozen=True)
class Catalog:
    """The items of one domain, sorted by category; every array has one entry per item.

    `colour` ... `brand` are indices of the vocabularies above. `popularity` is an item's weight within its category.
    """

    domain: Domain
    asins: tuple[str, ...]
    category: Ints
    colour: Ints
    style: Ints
    material: Ints
    tier: Ints
    brand: Ints
    popularity: Floats


def make_catalog(domain: Domain, items: int, rng: np.random.Generator) -> Catalog:
    """Draw the items of a domain.

    A brand prefers one style and one tier. Popularity follows a power law of the rank within the category. 5 % of the items
    are cold, so that some are below any core.

    Args:
        domain: the domain whose categories and id prefix are used.
        items: number of items; at least one per category.
        rng: source of all random numbers.

    Raises:
        ValueError: there are fewer items than categories.
    """
    if items < CATEGORIES:
        raise ValueError(f"items is {items}; give at least {CATEGORIES}, one for each category of the demo")
    category = np.sort(np.concatenate([np.arange(CATEGORIES), rng.integers(CATEGORIES, size=items - CATEGORIES)]))
    brand = rng.integers(len(BRANDS), size=items)
    style = np.where(rng.random(items) < 0.6, brand % len(STYLES), rng.integers(len(STYLES), size=items))
    tier = np.where(rng.random(items) < 0.6, brand // 2 % len(TIERS), rng.integers(len(TIERS), size=items))
    popularity = np.empty(items)
    for c in range(CATEGORIES):
        members = np.flatnonzero(category == c)
        popularity[members] = rng.permutation(np.arange(1, len(members) + 1) ** -0.7)
    popularity[rng.random(items) < 0.05] *= 0.03
    numbers = rng.permutation(items)  # so that close ids do not reveal the category
    return Catalog(
        domain=domain,
        asins=tuple(f"{domain.prefix}{n:08d}" for n in numbers),
        category=category,
        colour=rng.integers(len(COLOURS), size=items),
        style=style,
        material=rng.integers(len(MATERIALS), size=items),
        tier=tier,
        brand=brand,
        popularity=popularity,
    )


# ---------------------------------------------------------------------------------------------------- words


def metadata_record(catalog: Catalog, item: int, has_image: bool, rng: np.random.Generator) -> dict[str, Any]:
    """Make one record of the metadata file, in the format of the 2018 edition.

    A page may omit an attribute or name it by a synonym, so that text alone does not determine the attributes. Some pages
    have no description or price, and some contain markup.

    Args:
        catalog: the items.
        item: index of the item.
        has_image: list the URL of a picture.
        rng: source of all random numbers.
    """
    domain, asin = catalog.domain, catalog.asins[item]
    project, nouns = list(domain.projects.items())[catalog.category[item] // ROLES]
    noun = nouns[catalog.category[item] % ROLES]
    brand = BRANDS[catalog.brand[item]]
    words = _attribute_words(catalog, item, rng)
    title = [brand if rng.random() < 0.7 else "", *(w if rng.random() < 0.75 else "" for w in words), noun]
    if rng.random() < 0.2:
        title.append(_pick(rng, ('12" x 8"', "(2 Pack)", "with Gift Box", "- New Version")))
    url = f"https://demo.invalid/{domain.name}/{asin}/0.jpg"  # .invalid is reserved; no page can have it
    return {
        "category": [domain.department, project, f"{noun}s"],
        "title": " ".join(filter(None, title)),
        "description": [] if rng.random() < 0.12 else _description(words, noun, project, rng),
        "brand": brand if rng.random() < 0.95 else "",
        "price": _price(int(catalog.tier[item]), rng),
        "asin": asin,
        "imageURL": [url] if has_image else [],
        "imageURLHighRes": [url] if has_image else [],
        "synthetic": True,
    }


def _pick(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[int(rng.integers(len(words)))]


def _attribute_words(catalog: Catalog, item: int, rng: np.random.Generator) -> list[str]:
    """Pick a word each for tier, style, colour and material."""
    return [
        _pick(rng, list(TIERS.values())[catalog.tier[item]]),
        _pick(rng, list(STYLES.values())[catalog.style[item]]),
        _pick(rng, list(COLOURS.values())[catalog.colour[item]][1]),
        _pick(rng, list(MATERIALS.values())[catalog.material[item]][1]),
    ]


def _description(words: list[str], noun: str, project: str, rng: np.random.Generator) -> list[str]:
    tier, style, colour, material = words
    sentences = [
        f"A {style.lower()} {noun.lower()} for {project.lower()}.",
        f"Made of {material.lower()}, finished in {colour.lower()}.",
        f"Our {tier.lower()} line; pairs well with other {style.lower()} pieces.",
        _pick(
            rng,
            ("Easy to clean.", "Ships in plain packaging.", "Designed for daily use.", "A thoughtful gift."),
        ),
    ]
    chosen = [sentence for sentence in sentences if rng.random() < 0.7] or sentences[:1]
    if rng.random() < 0.15:
        return [f"<p>{'<br />'.join(chosen)}</p> Care &amp; storage: keep dry."]
    return chosen


def _price(tier: int, rng: np.random.Generator) -> str:
    dollars = (9.0, 24.0, 70.0)[tier] * math.exp(rng.normal(0, 0.35))
    missing = rng.random() < 0.15
    return "" if missing else f"${dollars:.2f}"


# -------------------------------------------------------------------------------------------------- picture

SIDE = 64  # pixels of the written picture
_SCALE = 2  # drawn larger and shrunk, which smooths edges


def draw_item(catalog: Catalog, item: int, rng: np.random.Generator) -> bytes:
    """Draw the picture of an item as JPEG.

    The background shows the material, the outline the project and role, the fill the colour, the pattern the style, and
    size and frame the tier. Position, angle and brightness vary from item to item.

    Args:
        catalog: the items.
        item: index of the item.
        rng: source of all random numbers.
    """
    side = SIDE * _SCALE
    rgb = list(COLOURS.values())[catalog.colour[item]][0]
    fill = tuple(int(min(255, max(0, v * rng.normal(1, 0.08)))) for v in rgb)
    tier = int(catalog.tier[item])
    image = Image.new("RGB", (side, side), list(MATERIALS.values())[catalog.material[item]][0])
    mask = Image.new("L", (side, side), 0)
    outline = _outline(int(catalog.category[item]), side * (0.27, 0.33, 0.39)[tier], side, rng)
    ImageDraw.Draw(mask).polygon(outline, fill=255)
    image.paste(fill, mask=mask)
    pattern = _pattern(int(catalog.style[item]), side)
    dark = tuple(v * 11 // 20 for v in fill)
    image.paste(dark, mask=ImageChops.multiply(mask, pattern))
    if tier == 2:
        ImageDraw.Draw(image).rectangle((3, 3, side - 4, side - 4), outline=(190, 160, 60), width=4)
    small = image.resize((SIDE, SIDE), Image.Resampling.BOX)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _outline(category: int, radius: float, side: int, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Compute the corners of a shape: the role determines its kind, the project the number of corners."""
    project, role = divmod(category, ROLES)
    corners = 3 + project
    stretch = (1.0, 0.45, 0.75, 1.0)[role]  # base round, tool slender, consumable smaller, storage star-like
    inner = (1.0, 1.0, 0.8, 0.5)[role]
    centre_x, centre_y = side / 2 + rng.normal(0, side * 0.03, size=2)
    turn = rng.normal(0, 0.12)
    points = []
    for k in range(2 * corners):
        angle = math.pi * k / corners
        reach = radius * (inner if k % 2 else 1.0)
        x, y = reach * math.sin(angle) * stretch, -reach * math.cos(angle)
        points.append((
            float(centre_x + x * math.cos(turn) - y * math.sin(turn)),
            float(centre_y + x * math.sin(turn) + y * math.cos(turn)),
        ))  # fmt: skip
    return points


def _pattern(style: int, side: int) -> Image.Image:
    """Draw the pattern of a style in white on black."""
    image = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(image)
    name = list(STYLES)[style]
    step = side // 8
    for k in range(0, 2 * side, step):
        if name == "rustic":  # slanted grain
            draw.line((k, 0, k - side, side), fill=255, width=3)
        elif name == "coastal":  # horizontal stripes
            draw.rectangle((0, k, side, k + step // 2), fill=255)
        elif name == "retro":  # rings
            reach = k * 0.75
            draw.ellipse((side / 2 - reach, side / 2 - reach, side / 2 + reach, side / 2 + reach), outline=255, width=4)
        elif name in ("floral", "geometric"):
            for j in range(0, side, step):
                if name == "floral":  # dots
                    draw.ellipse((j + 3, k + 3, j + step - 4, k + step - 4), fill=255)
                elif (j // step + k // step) % 2:  # checks
                    draw.rectangle((j, k, j + step - 1, k + step - 1), fill=255)
    return image
