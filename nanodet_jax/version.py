"""The version, defined once for the package and its distribution."""

__version__ = "0.1.0"
