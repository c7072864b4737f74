"""Vendor adapters behind one port. Start with `port.py`; one file per vendor, sending and receipts together.

This room knows vendors, their protocols and the network. It knows no database, queue, retry policy or project.
"""
