"""Admission: nothing of it is for Python."""
