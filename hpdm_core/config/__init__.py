"""Configuration: strict YAML to a typed tree, presets, overrides, and the way back to text."""
