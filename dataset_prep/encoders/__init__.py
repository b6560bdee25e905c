"""Text and image features by language models and CLIP, in shards."""
