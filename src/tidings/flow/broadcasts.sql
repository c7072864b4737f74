-- name: insert_broadcast
INSERT INTO broadcast (id, project_id, type_version_id, audience, data, metadata, options, priority, channels, lanes,
                       at_most_once, test, locale, once_key, expires_after, expires_at, rate, send_at, local_time, status,
                       estimated, traceparent, created_at)
VALUES ($1, $2, $3, $4::text::json, $5::text::json, $6::text::json, $7::text::json, $8, $9, $10, $11, $12, $13, $14, $15, $16,
        $17, $18, $19, $20, $21, $22, coalesce($23::timestamptz, now()));

-- name: insert_cohorts
-- The zones of each as a JSON array.
INSERT INTO broadcast_cohort (id, project_id, broadcast_id, time_zones, others, due_at)
SELECT id, $3, $4, CASE WHEN zones IS NOT NULL THEN ARRAY(SELECT json_array_elements_text(zones::json)) END, others,
       coalesce(due_at, $6::timestamptz, now())
FROM unnest($1::uuid[], $2::text[], $5::bool[], $7::timestamptz[]) AS c (id, zones, others, due_at);

-- name: load_broadcast
SELECT b.id, t.type_key, t.version, b.status, b.audience::text AS audience, b.estimated, b.expanded, b.priority, b.channels,
       b.locale, b.metadata::text AS metadata, b.once_key, b.rate, b.send_at, b.local_time, b.expires_at, b.test,
       b.created_at, b.ended_at, b.cancelled_at
FROM broadcast b JOIN type_version t ON t.project_id = b.project_id AND t.id = b.type_version_id
WHERE b.project_id = $1 AND b.id = $2;

-- name: list_broadcasts
-- Newest first; those before $2.
SELECT b.id, t.type_key, t.version, b.status, b.audience::text AS audience, b.estimated, b.expanded, b.priority, b.channels,
       b.locale, b.metadata::text AS metadata, b.once_key, b.rate, b.send_at, b.local_time, b.expires_at, b.test,
       b.created_at, b.ended_at, b.cancelled_at
FROM broadcast b JOIN type_version t ON t.project_id = b.project_id AND t.id = b.type_version_id
WHERE b.project_id = $1 AND ($2::uuid IS NULL OR b.id < $2) AND ($3::smallint IS NULL OR b.status = $3)
ORDER BY b.id DESC LIMIT $4;

-- name: lock_broadcast
SELECT status, test, priority, lanes, traceparent, expanded FROM broadcast WHERE project_id = $1 AND id = $2 FOR UPDATE;

-- name: list_open_cohorts
-- Those that have somebody left to tell, with whether their time is still to come.
SELECT id, due_at, due_at > coalesce($3::timestamptz, now()) AS ahead
FROM (  -- OFFSET 0: else it may be looked for in the order of all cohorts' ids
    SELECT * FROM broadcast_cohort WHERE project_id = $1 AND broadcast_id = $2 AND ended_at IS NULL OFFSET 0) c
ORDER BY id;

-- name: update_status
UPDATE broadcast SET status = $3, paced_until = NULL WHERE project_id = $1 AND id = $2;

-- name: cancel_broadcast
UPDATE broadcast SET status = $3, cancelled_at = coalesce($4::timestamptz, now()),
                     ended_at = coalesce(ended_at, $4::timestamptz, now())
WHERE project_id = $1 AND id = $2;

-- name: lock_cohorts
-- The cohorts of these jobs, which we hold, and their broadcasts, locked in order: cohorts of one share its counter and pace.
-- The cursor is nobody's but the job's holder's; what the broadcast says is read after its lock.
SELECT c.id, c.broadcast_id, c.time_zones, c.others, c.after_user, c.ended_at, b.project_id, b.type_version_id,
       b.audience::text AS audience, b.priority, b.channels, b.at_most_once, b.test, b.locale, b.once_key, b.expires_after,
       b.expires_at, b.rate, b.paced_until, b.status, b.traceparent, b.created_at,
       coalesce($3::timestamptz, now()) AS now
FROM (
    SELECT c.* FROM unnest($1::uuid[], $2::int[]) AS x (id, project_id)
    CROSS JOIN LATERAL (  -- OFFSET 0: see load_deliveries
        SELECT * FROM broadcast_cohort c WHERE c.id = x.id AND c.project_id = x.project_id OFFSET 0) c
    ORDER BY c.broadcast_id, c.id OFFSET 0
) c
CROSS JOIN LATERAL (
    SELECT * FROM broadcast b WHERE b.id = c.broadcast_id AND b.project_id = c.project_id FOR UPDATE) b;

-- name: insert_told
-- The notifications of one page: what they say stands in the broadcast.
INSERT INTO notification (id, project_id, type_version_id, user_id, priority, channels, at_most_once, test, locale, expires_at,
                          traceparent, once_key, broadcast_id, created_at)
SELECT id, $3, $4, user_id, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14
FROM unnest($1::uuid[], $2::text[]) AS n (id, user_id);

-- name: advance_cohort
WITH moved AS (
    UPDATE broadcast_cohort SET after_user = $4, expanded = expanded + $5, ended_at = CASE WHEN $6 THEN $7::timestamptz END
    WHERE project_id = $1 AND id = $3
)
UPDATE broadcast SET expanded = expanded + $5, status = $8, paced_until = $9 WHERE project_id = $1 AND id = $2;

-- name: end_broadcast
-- If that was the last cohort.
UPDATE broadcast SET status = $3, ended_at = $4
WHERE project_id = $1 AND id = $2 AND NOT EXISTS (
    SELECT FROM broadcast_cohort c WHERE c.project_id = $1 AND c.broadcast_id = $2 AND c.ended_at IS NULL);
