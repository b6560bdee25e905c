"""Benchmark suites: the paper's tables and figures, each one command, every model with the same care.

A suite file (``spec``) names rows; a row and a seed make a cell (``cells``), which a process of its own trains and tests
(``work``); ``runner`` runs the cells that have no result, and ``compare`` and ``tables`` make of them what a person reads.
"""
