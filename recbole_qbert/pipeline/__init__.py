"""The stages in order, with their outputs cached."""
