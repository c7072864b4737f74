"""The routes of `/api/v1`: one file per noun, each with a `router`.

A route says which scope it needs (`caller: Reader`, `caller: Admin`), takes a strict model, calls one function of the
directory or the road, and gives a view. `categories.py` is the shortest complete example.
"""
