"""Fixtures of several test files."""

from browsers import browser  # noqa: F401
