"""Measurements: each script prints a table and writes JSON with the machine's facts. Nothing here is asserted."""
