"""The command line. It reads arguments; the work is done by functions of the other packages."""

from recbole_qbert.cli.command_line import build_parser, main, parse_properties

__all__ = ["build_parser", "main", "parse_properties"]
