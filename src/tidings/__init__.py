"""Tidings: one API call, and the right person is told, once, in time, and it can be proved."""
