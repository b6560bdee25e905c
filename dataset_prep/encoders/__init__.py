"""Compute text and image features with language models and CLIP, in shards."""
