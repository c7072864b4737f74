"""The road: what happens to a notification between the API call and the proof.

    stage    in -> out                                   I/O
    accept   request -> Accepted, Duplicate or Refused   one transaction for a whole batch: notification + plan job
    plan     notification, user, now -> deliveries       one transaction: locked jobs, pure decision, writes
    render   delivery, template version, data -> Message pure
    send     Message, account -> SendResult              network, no transaction
    settle   delivery, SendResult -> transition          one transaction for a whole batch: state, event, next job
    measure  deltas -> roll-ups                          batched

`request.py` is what accept decides on; `broadcasts.py` makes notifications of one request for many. `reader.py` and
`facts.py` are what planning is given, `decide.py` decides (a type's steps, with the rules of `caps.py` and the
directory), `digests.py` gathers; `second_look.py` asks once more before a message leaves; `settlement.py` decides what
settling writes. One direction: a stage knows the ones before it only by their rows; a retry is a new job. `jobs.py`
says which job is which and on which lane it waits.

What comes back: `callbacks.py` (a vendor's post) and `tracking.py` (links, pixels) make facts; `receipts.py` decides
them; `inbound.py` takes the text messages that people write; `unsubscribe.py` what they want no more; `engagement.py`
counts when they look; `effects.py` writes what follows, for settling as well; `hooks.py` tells the application.
Besides the road: `options.py` (what a request says beyond its content), `events.py` (an application's events become
requests), `inbox.py` (what users read and mark), `intervene.py` (cancel, replay), `privacy.py` (export, erase),
`timeline.py` (what is shown) and `explain.py` (why). Only this room writes the flow tables; only the engine writes the
job table.
"""
