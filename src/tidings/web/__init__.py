"""The HTTP side: problems, the edge that every request passes, the routes of the API, the documentation page.

It knows HTTP and turns requests into calls of the rooms below, and their answers and errors into responses. It decides
nothing about notifications and holds no SQL but that of its own idempotency keys.
"""
