"""Raw Amazon reviews and metadata to RecBole atomic files."""
