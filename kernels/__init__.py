"""Selective scans: one operation, several backends."""
