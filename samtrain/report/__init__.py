"""The page that a run leaves behind."""

from samtrain.report.page import write_report

__all__ = ["write_report"]
