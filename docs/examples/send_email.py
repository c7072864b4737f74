"""Sends an e-mail and waits until it is out. Needs TIDINGS_API_KEY."""

import time

from tidings.client import Client

with Client() as tidings:
    accepted = tidings.send(type="welcome", to={"user": "ada"}, data={"product": "Tidings"}, channels=["email"])
    notification = tidings.get(accepted.id)
    while notification.status in ("queued", "processing"):
        time.sleep(0.1)
        notification = tidings.get(accepted.id)
    for entry in notification.timeline:
        print(entry.at.isoformat(), entry.event, entry.channel or "", entry.reason or "")
