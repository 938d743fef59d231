"""Sampling: solvers as plain functions, and the engine that runs a family's plan."""
