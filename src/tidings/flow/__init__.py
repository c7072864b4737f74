"""The road: what happens to a notification between the API call and the proof.

    stage    in -> out                                   I/O
    accept   request -> Accepted, Duplicate or Refused   one transaction for a whole batch: notification + plan job
    plan     notification, user, now -> deliveries       one transaction: locked jobs, pure decision, writes
    render   delivery, template version, data -> Message pure
    send     Message, account -> SendResult              network, no transaction
    settle   delivery, SendResult -> transition          one transaction for a whole batch: state, event, next job
    measure  deltas -> roll-ups                          batched

`request.py` is what accept decides on. One direction: a stage knows the ones before it only by their rows; a retry is a
new job. `jobs.py` says which job is which and on which lane it waits.

What comes back: `callbacks.py` (a vendor's post) and `tracking.py` (links, pixels) make facts; `receipts.py` decides
them; `inbound.py` takes the text messages that people write; `effects.py` writes what follows, for settling as well;
`hooks.py` tells the application. Besides the road: `options.py` (what a request says beyond its content), `inbox.py`
(what users read and mark), `intervene.py` (cancel, replay) and `timeline.py` (what is shown). Only this room writes the
flow tables; only the engine writes the job table.
"""
