"""What exists before a notification: projects, keys, users, addresses, categories, types, templates, accounts, audit.

It knows its own tables and the rules of what may stand in them. It knows nothing of HTTP, of queues, or of what was
ever sent. A function that writes takes the transaction's connection and the :class:`~tidings.directory.audit.Actor`,
and leaves its audit row in the same transaction.
"""
