"""The report of an evaluation that people read: one HTML file that needs nothing else."""

from pipeline.report.gallery import GalleryImage, Overlay
from pipeline.report.page import render_report

__all__ = ["GalleryImage", "Overlay", "render_report"]
