-- name: insert_events
-- Answers with those that are new, each with whether its project has a hook; which have is looked up once for all rows.
INSERT INTO event (id, project_id, notification_id, delivery_id, kind, attempt, account_id, reason, provider_id, detail, at)
SELECT id, project_id, notification_id, delivery_id, kind, attempt, account_id, reason, provider_id, detail::json,
       coalesce($11::timestamptz, now())
FROM unnest($1::uuid[], $2::int[], $3::uuid[], $4::uuid[], $5::smallint[], $6::smallint[], $7::int[], $8::text[],
            $9::text[], $10::text[])
     AS e (id, project_id, notification_id, delivery_id, kind, attempt, account_id, reason, provider_id, detail)
ON CONFLICT DO NOTHING  -- the ids of receipts are made of what they say: a repetition has the same
RETURNING id, project_id = ANY (ARRAY(SELECT h.project_id FROM hook h WHERE h.enabled AND h.project_id = ANY ($2))) AS heard;

-- name: insert_suppressions
INSERT INTO suppression (project_id, channel, address, stream, reason, delivery_id, created_at)
SELECT DISTINCT ON (project_id, channel, address, stream) project_id, channel, address, stream, reason, delivery_id,
       coalesce($7::timestamptz, now())
FROM unnest($1::int[], $2::smallint[], $3::text[], $4::text[], $5::text[], $6::uuid[])
     AS s (project_id, channel, address, stream, reason, delivery_id)
ORDER BY project_id, channel, address, stream
ON CONFLICT DO NOTHING;

-- name: drop_addresses
UPDATE address a SET dropped_at = coalesce($5::timestamptz, now())
FROM unnest($1::int[], $2::text[], $3::smallint[], $4::text[]) AS x (project_id, user_id, channel, value)
WHERE a.project_id = x.project_id AND a.user_id = x.user_id AND a.channel = x.channel AND a.value = x.value
  AND a.project_id = ANY ($1) AND a.user_id = ANY ($2) AND a.dropped_at IS NULL;  -- see lock_cancelled

-- name: insert_dead_letters
INSERT INTO dead_letter (project_id, delivery_id, notification_id, channel, reason, attempts, at)
SELECT project_id, delivery_id, notification_id, channel, reason, attempts, coalesce($7::timestamptz, now())
FROM unnest($1::int[], $2::uuid[], $3::uuid[], $4::smallint[], $5::text[], $6::smallint[])
     AS d (project_id, delivery_id, notification_id, channel, reason, attempts)
ORDER BY project_id, delivery_id
ON CONFLICT (project_id, delivery_id) DO UPDATE
    SET reason = excluded.reason, attempts = excluded.attempts, at = excluded.at;

-- name: delete_lifted_letters
-- They were given up without knowing; now it is proved that they went out.
DELETE FROM dead_letter d USING unnest($1::int[], $2::uuid[]) AS x (project_id, delivery_id)
WHERE d.project_id = x.project_id AND d.delivery_id = x.delivery_id
  AND d.project_id = ANY ($1) AND d.delivery_id = ANY ($2);  -- see lock_cancelled

-- name: lock_runs
-- Whoever ends something of a notification looks at the rest of it under this lock: of two who end its last deliveries at
-- the same time, the second then sees what the first wrote.
SELECT r.id FROM unnest($1::uuid[], $2::int[]) AS x (id, project_id)
CROSS JOIN LATERAL (  -- OFFSET 0: see load_deliveries
    SELECT * FROM run r
    WHERE r.project_id = x.project_id AND r.id = x.id AND r.id >= $3 AND r.id <= $4 FOR UPDATE OFFSET 0) r;

-- name: list_idle
-- Of these notifications those of which nothing has left, or may have, and nothing waits to: no delivery, no attempt whose
-- end is not known, no step, no digest. Deliveries and events of one are a short range of their keys. OFFSET 0: see
-- load_deliveries.
SELECT x.id FROM unnest($1::uuid[], $2::int[], $3::uuid[], $4::uuid[]) AS x (id, project_id, low, high)
WHERE NOT EXISTS (
    SELECT FROM delivery d
    WHERE d.project_id = x.project_id AND d.id >= x.low AND d.id <= x.high AND d.id >= $5 AND d.id <= $6
      AND d.notification_id = x.id AND (d.status <= 3 OR d.sent_at IS NOT NULL OR d.status = 4 AND d.reason = 'uncertain')
    OFFSET 0)
  AND NOT EXISTS (
    SELECT FROM run r
    WHERE r.project_id = x.project_id AND r.id = x.id AND r.id >= $5 AND r.id <= $6
      AND (r.state = 1 OR r.digest_id IS NOT NULL) OFFSET 0)
  AND NOT EXISTS (
    SELECT FROM event e
    WHERE e.project_id = x.project_id AND e.id >= x.low AND e.id <= x.high AND e.id >= $5 AND e.id <= $6
      AND e.notification_id = x.id AND e.kind = 9 OFFSET 0);

-- name: claim_once
-- The first with a key has it. Answers with whose each is; a key that another transaction is just claiming is waited for.
INSERT INTO send_once AS o (project_id, target, key, notification_id, at)
SELECT project_id, target, key, id, coalesce($5::timestamptz, now())
FROM unnest($1::int[], $2::text[], $3::text[], $4::uuid[]) AS x (project_id, target, key, id)
ON CONFLICT (project_id, target, key) DO UPDATE SET at = o.at
RETURNING o.project_id, o.target, o.key, o.notification_id;

-- name: forget_once
-- The keys that broadcasts by local time claim for themselves, once these are over; at most $2 at a time, answers with how
-- many. Those that callers give are kept: they say once, and mean it.
-- any project: housekeeping
WITH gone AS (
    DELETE FROM send_once WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM send_once
        WHERE at < $1 AND (key LIKE 'broadcast:brd\_%' OR key LIKE E'test\nbroadcast:brd\\_%')
        LIMIT $2 FOR UPDATE SKIP LOCKED))
    RETURNING 1
)
SELECT count(*)::int FROM gone;

-- name: delete_once
DELETE FROM send_once o USING unnest($1::int[], $2::text[], $3::uuid[]) AS x (project_id, target, id)
WHERE o.project_id = x.project_id AND o.target = x.target AND o.notification_id = x.id
  AND o.project_id = ANY ($1) AND o.target = ANY ($2);  -- see lock_cancelled
