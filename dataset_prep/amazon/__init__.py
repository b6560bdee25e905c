"""Convert raw Amazon reviews and metadata to RecBole's atomic files."""
