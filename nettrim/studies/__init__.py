"""Experiments: a frozen configuration, calls of the library, records; tables and plots apart from the computation."""
