#!/usr/bin/env python3
"""The command line of recbole_qbert from a checkout; installed, the same program is ``recbole-qbert``."""

from __future__ import annotations

import sys

from recbole_qbert.cli import main as cli_main

if __name__ == "__main__":
    sys.exit(cli_main())
