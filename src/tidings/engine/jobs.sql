-- name: insert_jobs
-- New work, many at once; $9 is the time that counts as now.
INSERT INTO job (id, project_id, kind, lane, priority, due_at, account_id, traceparent)
SELECT id, project_id, kind, lane, priority, coalesce(due_at, $9::timestamptz, now()), account_id, traceparent
FROM unnest($1::uuid[], $2::int[], $3::smallint[], $4::smallint[], $5::smallint[], $6::timestamptz[], $7::int[], $8::text[])
     AS n (id, project_id, kind, lane, priority, due_at, account_id, traceparent);

-- name: load_waiting
-- What is due on the lanes $1..$2, by lane, priority and project, counted up to $3: a skip scan over the index, at most
-- $4 projects with due work in each class, starting after project $5. For feeder lanes also the due work, leased or not, that waits on
-- the fullest lane they feed, counted up to $6.
-- Counting in order of due_at is what keeps the planner on the index: without, it reads the table from its start until it has
-- found enough, which is all of it when other lanes have a million rows and this one has ten.
-- any project: discovery serves all projects; the counts are per project
WITH RECURSIVE class AS (
    (SELECT lane, priority FROM job WHERE lane BETWEEN $1 AND $2 ORDER BY lane, priority LIMIT 1)
    UNION ALL
    SELECT n.lane, n.priority
    FROM class c CROSS JOIN LATERAL (
        SELECT lane, priority FROM job
        WHERE lane <= $2 AND (lane, priority) > (c.lane, c.priority) ORDER BY lane, priority LIMIT 1) n
)
SELECT c.lane, c.priority, p.project_id, p.waiting, f.n AS ahead
FROM class c
CROSS JOIN LATERAL (
    WITH RECURSIVE project AS (
        (SELECT j.project_id FROM job j WHERE j.lane = c.lane AND j.priority = c.priority AND j.project_id > $5
         ORDER BY j.project_id LIMIT 1)
        UNION ALL
        SELECT n.project_id
        FROM project p CROSS JOIN LATERAL (
            SELECT j.project_id FROM job j
            WHERE j.lane = c.lane AND j.priority = c.priority AND j.project_id > p.project_id
            ORDER BY j.project_id LIMIT 1) n
    )
    SELECT project.project_id, due.n AS waiting
    FROM project CROSS JOIN LATERAL (
        SELECT count(*)::int AS n FROM (
            SELECT 1 FROM job j
            WHERE j.lane = c.lane AND j.priority = c.priority AND j.project_id = project.project_id
              AND j.due_at <= coalesce($7::timestamptz, now()) AND j.lease_until IS NULL
            ORDER BY j.due_at LIMIT $3) q
    ) due
    WHERE due.n > 0 LIMIT $4
) p
CROSS JOIN LATERAL (
    SELECT coalesce(max(k.n), 0)::int AS n
    FROM generate_series(1, 7) fed CROSS JOIN LATERAL (
        SELECT count(*) AS n FROM (
            SELECT 1 FROM job j
            WHERE j.lane = fed AND j.priority = c.priority AND j.project_id = p.project_id
              AND j.due_at <= coalesce($7::timestamptz, now())
            ORDER BY j.due_at LIMIT $6) q) k
    WHERE c.lane >= 256 AND (c.lane >> fed) & 1 = 1
) f
ORDER BY c.priority, c.lane, p.project_id;

-- name: claim_jobs
-- Lease what the shares say, oldest first. Commits by itself, synchronously, before anything is sent. Nobody waits for
-- anybody: rows that another claim holds are skipped. `pinned`: the job could go to no other account.
-- By way of arrays, which the planner takes for short: of `picked` it expects a tenth of the table, and would read all of it.
WITH want AS MATERIALIZED (
    SELECT * FROM unnest($1::smallint[], $2::smallint[], $3::int[], $4::int[], $5::int[])
        AS w (lane, priority, project_id, account_id, n)
), picked AS MATERIALIZED (
    SELECT j.id, w.account_id, j.account_id IS NOT NULL AS pinned
    FROM want w CROSS JOIN LATERAL (
        SELECT j.id, j.account_id FROM job j
        WHERE j.lane = w.lane AND j.priority = w.priority AND j.project_id = w.project_id
          AND j.due_at <= coalesce($7::timestamptz, now()) AND j.lease_until IS NULL
        ORDER BY j.due_at LIMIT w.n FOR UPDATE SKIP LOCKED) j
)
UPDATE job SET
    lease_until = coalesce($7::timestamptz, now()) + $6::interval,
    epoch = epoch + 1,
    account_id = coalesce(job.account_id, picked.account_id)
FROM unnest(ARRAY(SELECT id FROM picked), ARRAY(SELECT account_id FROM picked), ARRAY(SELECT pinned FROM picked))
     AS picked (id, account_id, pinned)
WHERE job.id = picked.id AND job.id = ANY (ARRAY(SELECT id FROM picked))
RETURNING job.id, job.project_id, job.kind, job.lane, job.priority, job.attempt, job.epoch, job.account_id, job.traceparent,
          picked.pinned;

-- name: lock_jobs
-- The same choice, for work that is done within one transaction: a row lock instead of a lease.
SELECT j.id, j.project_id, j.kind, j.lane, j.priority, j.attempt, j.epoch, j.account_id, j.traceparent
FROM unnest($1::smallint[], $2::smallint[], $3::int[], $4::int[]) AS w (lane, priority, project_id, n)
CROSS JOIN LATERAL (
    SELECT * FROM job j
    WHERE j.lane = w.lane AND j.priority = w.priority AND j.project_id = w.project_id
      AND j.due_at <= coalesce($5::timestamptz, now()) AND j.lease_until IS NULL
    ORDER BY j.due_at LIMIT w.n FOR UPDATE SKIP LOCKED) j;

-- name: extend_leases
-- Still ours: the epoch says so. Answers with the ids that are.
-- any project: a worker extends what it claimed
-- `= ANY` in these statements says the same once more, for a plan that was made while the table was drained: it then puts the
-- table first in the join, and would read all of it.
UPDATE job SET lease_until = coalesce($4::timestamptz, now()) + $3::interval
FROM unnest($1::uuid[], $2::int[]) AS x (id, epoch)
WHERE job.id = x.id AND job.id = ANY ($1::uuid[]) AND job.epoch = x.epoch AND job.lease_until IS NOT NULL
RETURNING job.id;

-- name: finish_jobs
-- Done for good. A row that another claim has taken meanwhile (its epoch moved on) stays; answers with the claims that held.
-- any project: the id and epoch of a claim name one row
DELETE FROM job USING unnest($1::uuid[], $2::int[]) AS x (id, epoch)
WHERE job.id = x.id AND job.id = ANY ($1::uuid[]) AND job.epoch = x.epoch
RETURNING job.id, job.epoch;

-- name: retry_jobs
-- Not done: due again $6 later (or at once), free for anybody. $4: the account it must use, or NULL for a free choice.
-- any project: the id and epoch of a claim name one row
UPDATE job SET due_at = coalesce($6::timestamptz, now()) + x.after, lease_until = NULL, attempt = x.attempt,
               account_id = x.account_id
FROM unnest($1::uuid[], $2::int[], $3::interval[], $4::int[], $5::smallint[]) AS x (id, epoch, after, account_id, attempt)
WHERE job.id = x.id AND job.id = ANY ($1::uuid[]) AND job.epoch = x.epoch
RETURNING job.id, job.epoch;

-- name: reschedule_jobs
-- any project: of jobs that the caller's transaction has locked
UPDATE job SET kind = x.kind, lane = x.lane, priority = x.priority, due_at = coalesce(x.due_at, $6::timestamptz, now()),
               lease_until = NULL, attempt = 0
FROM unnest($1::uuid[], $2::smallint[], $3::smallint[], $4::smallint[], $5::timestamptz[])
     AS x (id, kind, lane, priority, due_at)
WHERE job.id = x.id AND job.id = ANY ($1::uuid[]);

-- name: advance_jobs
-- Whatever its time: a job that is just being put off by somebody else has to be waited for, and no condition on what it was
-- before may pass it by.
-- any project: ids of what the caller's transaction has moved
UPDATE job SET due_at = least(job.due_at, coalesce($3::timestamptz, now()))
WHERE job.id = ANY ($1::uuid[]) AND job.kind = $2 AND job.lease_until IS NULL
RETURNING job.lane;

-- name: release_jobs
-- Given back unused (drain, or no time left in the lease): as if never claimed.
-- any project: the id and epoch of a claim name one row
UPDATE job SET lease_until = NULL, account_id = x.account_id
FROM unnest($1::uuid[], $2::int[], $3::int[]) AS x (id, epoch, account_id)
WHERE job.id = x.id AND job.id = ANY ($1::uuid[]) AND job.epoch = x.epoch AND job.lease_until IS NOT NULL;

-- name: lock_expired
-- Leases that ran out: their worker died or lost its connection. Several sweepers share them out.
-- any project: the sweeper serves all projects
SELECT id, project_id, kind, lane, priority, attempt, epoch, account_id, traceparent
FROM job WHERE lease_until < coalesce($2::timestamptz, now())
LIMIT $1 FOR UPDATE SKIP LOCKED;

-- name: remove_free_jobs
-- Takes back work that nobody has claimed yet; answers with the ids that went.
DELETE FROM job WHERE job.project_id = $1 AND job.id = ANY ($2::uuid[]) AND job.lease_until IS NULL
RETURNING job.id;

-- name: load_jobs
-- The jobs among these ids, with whether they are leased.
SELECT id, due_at, attempt, epoch, lease_until IS NOT NULL AS leased
FROM job WHERE project_id = $1 AND id = ANY ($2::uuid[]);

-- name: load_lag
-- Each lane's depth (of every class and project counted up to $1) and the age of its oldest work: due, and held by nobody.
-- A skip scan over the projects: the oldest of each is found at the start of its range, however long that is.
-- any project: an operator's figure
WITH RECURSIVE class AS (
    (SELECT lane, priority, project_id FROM job ORDER BY lane, priority, project_id LIMIT 1)
    UNION ALL
    SELECT n.lane, n.priority, n.project_id
    FROM class c CROSS JOIN LATERAL (
        SELECT lane, priority, project_id FROM job
        WHERE (lane, priority, project_id) > (c.lane, c.priority, c.project_id)
        ORDER BY lane, priority, project_id LIMIT 1) n
)
SELECT c.lane, sum(due.n)::int AS depth, extract(epoch FROM now() - min(due.oldest_at))::float8 AS seconds
FROM class c CROSS JOIN LATERAL (
    SELECT count(*) AS n, min(q.due_at) AS oldest_at FROM (
        SELECT j.due_at FROM job j
        WHERE j.lane = c.lane AND j.priority = c.priority AND j.project_id = c.project_id
          AND j.due_at <= now() AND j.lease_until IS NULL
        ORDER BY j.due_at LIMIT $1) q) due
WHERE due.n > 0
GROUP BY c.lane;
