"""Writes the page of a run, and a page that compares runs."""

from samtrain.report.page import write_report

__all__ = ["write_report"]
