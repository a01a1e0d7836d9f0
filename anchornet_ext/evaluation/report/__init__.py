"""A report: one page that needs nothing but itself, and its figures as PNG files."""

from .write import PAGE, write_report

__all__ = ["PAGE", "write_report"]
