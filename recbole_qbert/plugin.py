"""Register your own models with RecBole. An alias of :mod:`recbole_qbert.recbole_integration.registry`."""

from recbole_qbert.recbole_integration.registry import check_keys, register

__all__ = ["check_keys", "register"]
