"""All that knows RecBole: registration, patches, data set, trainer, checkpoints."""
