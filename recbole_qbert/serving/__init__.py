"""A trained model without RecBole: export, recommendation, new items."""
