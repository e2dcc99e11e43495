"""Downloads: a connection that says nothing is given up."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["PATIENCE", "patience"]

PATIENCE = 30  # seconds without a byte, after which a download is given up


@contextmanager
def patience() -> Iterator[None]:
    """Give up connections that are silent for PATIENCE seconds."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
