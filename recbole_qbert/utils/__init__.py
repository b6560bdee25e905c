"""Files, processes, formatting and the console."""
