"""The version, in one place: the build backend and `hpdm --version` both read it here."""

__version__ = "0.1.0"
