"""Sends a signed webhook to receive_webhook.py. Needs TIDINGS_API_KEY."""

from tidings.client import Client

with Client() as tidings:
    accepted = tidings.send(type="order_shipped", to={"webhook": "http://127.0.0.1:9000/"}, data={"order": "A-1"})
    print(accepted.id, accepted.status)
