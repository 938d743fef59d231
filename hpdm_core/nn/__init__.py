"""Layers that the families share: attention, embeddings, blocks."""
