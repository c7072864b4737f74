-- name: insert_counters
-- In the order given. A row that somebody else is just making is waited for.
INSERT INTO cap_counter (project_id, target, key)
SELECT project_id, target, key FROM unnest($1::int[], $2::text[], $3::text[]) AS w (project_id, target, key)
ON CONFLICT DO NOTHING;

-- name: lock_counters
-- One after the other in the order given: rows of a function come as they stand in the arrays, and each is looked up (and
-- locked) when its turn comes.
SELECT c.project_id, c.target, c.key, c.hits
FROM unnest($1::int[], $2::text[], $3::text[]) AS w (project_id, target, key)
CROSS JOIN LATERAL (
    SELECT * FROM cap_counter c
    WHERE c.project_id = w.project_id AND c.target = w.target AND c.key = w.key FOR UPDATE OFFSET 0) c;

-- name: load_counters
SELECT c.project_id, c.target, c.key, c.hits
FROM unnest($1::int[], $2::text[], $3::text[]) AS w (project_id, target, key)
CROSS JOIN LATERAL (
    SELECT * FROM cap_counter c
    WHERE c.project_id = w.project_id AND c.target = w.target AND c.key = w.key OFFSET 0) c;

-- name: update_counters
-- They exist and are locked. As an insert it finds each by its key, whatever the statistics say.
INSERT INTO cap_counter (project_id, target, key, hits, emptied_at)
SELECT * FROM unnest($1::int[], $2::text[], $3::text[], $4::jsonb[], $5::timestamptz[])
ON CONFLICT (project_id, target, key) DO UPDATE SET hits = excluded.hits, emptied_at = excluded.emptied_at;

-- name: refund_places
-- From every counter of the target, since nobody remembers which of them counted a notification. Locked in the order of
-- their keys, as planning does; the second look sees what those wrote who were waited for.
WITH place AS MATERIALIZED (
    SELECT project_id, target, array_agg(id) AS ids
    FROM unnest($1::int[], $2::text[], $3::text[]) AS p (project_id, target, id)
    GROUP BY project_id, target
), held AS MATERIALIZED (
    SELECT c.project_id, c.target, c.key, p.ids
    FROM place p JOIN cap_counter c ON c.project_id = p.project_id AND c.target = p.target AND c.hits ?| p.ids
    WHERE c.project_id = ANY ($1) AND c.target = ANY ($2)
    ORDER BY c.project_id, c.target, c.key FOR UPDATE OF c
)
UPDATE cap_counter c SET hits = c.hits - h.ids
FROM held h
WHERE c.project_id = h.project_id AND c.target = h.target AND c.key = h.key
  AND c.project_id = ANY ($1) AND c.target = ANY ($2);

-- name: forget_counters
-- any project: housekeeping
-- A part of the table at a time, along its key from after ($1, $2, $3). A counter that planning holds is left alone; it is
-- about to be written. Answers with where the part ended, or NULL after the last.
WITH part AS MATERIALIZED (
    SELECT project_id, target, key, emptied_at FROM cap_counter
    WHERE (project_id, target, key) > ($1, $2, $3)
    ORDER BY project_id, target, key LIMIT $4
), gone AS (
    DELETE FROM cap_counter c WHERE c.ctid = ANY (ARRAY(
        SELECT c.ctid FROM part p CROSS JOIN LATERAL (
            SELECT c.ctid FROM cap_counter c
            WHERE c.project_id = p.project_id AND c.target = p.target AND c.key = p.key
              AND c.emptied_at <= coalesce($5::timestamptz, now()) FOR UPDATE SKIP LOCKED OFFSET 0) c
        WHERE p.emptied_at <= coalesce($5::timestamptz, now())))
    RETURNING 1
), last AS (
    SELECT project_id, target, key FROM part ORDER BY project_id DESC, target DESC, key DESC LIMIT 1
)
SELECT (SELECT count(*)::int FROM gone) AS forgotten, last.project_id, last.target, last.key
FROM (VALUES (1)) AS one LEFT JOIN last ON (SELECT count(*) FROM part) = $4;
