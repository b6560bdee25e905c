#!/usr/bin/env python
"""Command line of recbole_qbert from a checkout; see recbole_qbert/cli.py."""

import os
import sys

# Before torch is loaded: its threads then sleep while they wait for each other. By default they spin, and on a machine that
# has anything else to do a step of a small network takes ten times as long (measured in docs/results.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from recbole_qbert.cli import main

if __name__ == "__main__":
    sys.exit(main())
