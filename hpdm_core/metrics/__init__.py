"""Metrics for generated video: FVD and its relatives, each by a named, hashed protocol."""
