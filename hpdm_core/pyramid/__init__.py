"""HPDM §3.1: the patch pyramid's geometry. Integers first; no networks, no noise."""
