"""Data preparation: raw product data to RecBole atomic files, and a synthetic demo to try everything on.

Nothing in this package imports RecBole, torch or recbole_qbert, so another host can use it as it is.
"""
