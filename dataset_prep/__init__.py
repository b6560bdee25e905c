"""Prepare data sets: raw product data to RecBole's atomic files, pictures, features, imports, checks and a synthetic demo.

The package uses the files and formats of `recbole_qbert`, not its models; only `encoders` uses torch itself (import-linter
checks both, see pyproject.toml).
"""
