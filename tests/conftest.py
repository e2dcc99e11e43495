"""Fixtures of several test files."""

from browsers import browser, desktop, page, phone  # noqa: F401
