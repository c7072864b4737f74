"""The engine: durable jobs in PostgreSQL, fairly shared among workers. It knows no notification.

A job is due work on a lane. A worker *discovers* what waits (`load_waiting`), *decides* how to share its free slots
(`decide_shares`, pure), *claims* exactly that (`claim_jobs`: a lease and an epoch), and hands the jobs to the handler
it was given. The handler's results are settled in batches; the job row goes in the transaction that records the
result.

    jobs.py     the job table: insert, discover, claim, extend, finish, retry, sweep      (the only writer of it)
    shares.py   who gets the free slots: priorities with floors and a reserve, fairness between projects
    gate.py     accounts: pace tokens, concurrency, circuit breaker
    batch.py    group commit with bisecting
    lane.py     a sending lane: claim, send, settle
    feed.py     the feeder lanes, held back while the lanes they feed are full
    wakes.py    hints that there is work
    worker.py   a process's lanes, drain, lease extension, sweeper
"""
