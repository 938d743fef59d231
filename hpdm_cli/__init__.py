"""The `hpdm` command: parse, call one core function, render."""
