"""The command line. It reads arguments and calls functions of the other packages."""

from recbole_qbert.cli.command_line import build_parser, main, parse_properties

__all__ = ["build_parser", "main", "parse_properties"]
