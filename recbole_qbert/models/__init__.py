"""RecBole model classes, one a file."""
