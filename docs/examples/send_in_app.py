"""Puts an item into a user's inbox and reads it there. Needs TIDINGS_API_KEY."""

import time

from tidings.client import Client

with Client() as tidings:
    accepted = tidings.send(type="order_shipped", to={"user": "ada"}, data={"order": "A-1"}, channels=["in_app"])
    while tidings.get(accepted.id).status in ("queued", "processing"):
        time.sleep(0.1)
    newest = next(tidings.users.inbox("ada"))
    print(newest.seq, newest.title)
