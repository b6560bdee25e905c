"""Benchmark suites: the paper's tables and figures, one command each, one evaluation protocol for all models.

A suite file (``suite_spec``) lists models. A model and a seed make a trial (``trials``), which a process of its own
trains and tests (``worker``). ``runner`` runs the trials without a result; ``comparison`` and ``markdown`` turn results
into tables; ``result_archive`` keeps them in a small folder.
"""
