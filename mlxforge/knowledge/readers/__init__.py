"""Documents of any kind as blocks of text: one reader a suffix."""

from mlxforge.knowledge.readers.base import Block, Parsed, Unreadable
from mlxforge.knowledge.readers.table import READERS, Reader, parse

__all__ = ["READERS", "Block", "Parsed", "Reader", "Unreadable", "parse"]
