"""Level 5: the self-contained HTML report of a reconstruction."""

from relief3d.report.data import ReportData, StageTiming, ViewRecord, records_from_scene
from relief3d.report.writer import write_report

__all__ = ["ReportData", "StageTiming", "ViewRecord", "records_from_scene", "write_report"]
