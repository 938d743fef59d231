"""Conditions: what a model is told about a clip, as tokens."""
