"""Benchmark suites: the paper's tables and figures, each one command, every model with the same care.

A suite file (``spec``) names rows; a row and a seed make a trial (``trials``), which a process of its own trains and tests
(``work``); ``runner`` runs the trials that have no result, and ``compare`` and ``tables`` make of them what a person reads.
"""
