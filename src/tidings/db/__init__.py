"""The database room: connections and transactions, named SQL, migrations, daily partitions, the private server.

It knows PostgreSQL and nothing of what the tables mean: no project, no notification, no job. Statements belong to the
rooms that own the tables and stand in `.sql` files beside them.
"""
