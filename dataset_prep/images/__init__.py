"""Download the pictures of a data set's items, within rate limits, and check that each is a valid picture."""
