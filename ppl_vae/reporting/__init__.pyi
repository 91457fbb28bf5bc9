from .pages import html_report as html_report
from .plane import ReportExtraError as ReportExtraError
