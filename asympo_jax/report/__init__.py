"""Compares runs from what they left on disk: a table, `curves.png` and `report.json`."""
