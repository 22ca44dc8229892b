"""The report of one or more runs: reads run folders, never imports torch."""

from mimkit.report.page import write_report
from mimkit.report.read import RunData, read_run

__all__ = ["RunData", "read_run", "write_report"]
