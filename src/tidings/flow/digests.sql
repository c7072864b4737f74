-- name: open_windows
-- Pass them in the order of their keys. A window that somebody else is just opening, joining or closing is waited for. One that
-- exists closes later only if it slides, and never after its latest_at. Answers with all; the id tells which are new.
INSERT INTO digest_window AS w (id, project_id, target, key, type_version_id, opened_at, closes_at, latest_at, reason)
SELECT id, project_id, target, key, type_version_id, $9::timestamptz, closes_at, latest_at, reason
FROM unnest($1::uuid[], $2::int[], $3::text[], $4::text[], $5::int[], $6::timestamptz[], $7::timestamptz[], $8::text[])
     AS x (id, project_id, target, key, type_version_id, closes_at, latest_at, reason)
ON CONFLICT (project_id, target, key) DO UPDATE SET
    type_version_id = greatest(w.type_version_id, excluded.type_version_id),
    closes_at = greatest(w.closes_at, least(excluded.closes_at, w.latest_at))
RETURNING id, project_id, target, key, closes_at;

-- name: insert_items
INSERT INTO digest_item (project_id, window_id, notification_id)
SELECT project_id, window_id, notification_id
FROM unnest($1::int[], $2::uuid[], $3::uuid[]) AS x (project_id, window_id, notification_id)
ON CONFLICT DO NOTHING;

-- name: lock_windows
-- Nobody waits: one that is just being joined is closed a moment later, and no two transactions wait for each other.
SELECT w.id, w.key, w.type_version_id, w.closes_at
FROM unnest($1::uuid[], $2::int[]) AS x (id, project_id)
CROSS JOIN LATERAL (  -- by the id alone, or the index that begins with the project may be taken; OFFSET 0: see load_deliveries
    SELECT * FROM digest_window w WHERE w.id = x.id FOR UPDATE SKIP LOCKED OFFSET 0) w
WHERE w.project_id = x.project_id;

-- name: load_busy
-- Which of the windows that could not be locked are there.
SELECT w.id
FROM unnest($1::uuid[], $2::int[]) AS x (id, project_id)
CROSS JOIN LATERAL (SELECT * FROM digest_window w WHERE w.id = x.id OFFSET 0) w  -- see lock_windows
WHERE w.project_id = x.project_id;

-- name: load_item_bounds
-- The smallest and the largest id among the windows' items. After the lock, in a statement of its own, which sees what those
-- wrote who were waited for. As text, which sorts alike: before version 18 there is no smallest uuid.
-- any project: of windows that the caller's transaction has locked
SELECT min(i.notification_id::text COLLATE "C")::uuid AS low, max(i.notification_id::text COLLATE "C")::uuid AS high,
       count(*)::int AS total
FROM unnest($1::uuid[]) AS x (id)
CROSS JOIN LATERAL (  -- OFFSET 0: see load_deliveries
    SELECT * FROM digest_item i WHERE i.window_id = x.id OFFSET 0) i;

-- name: load_expired
-- Items that are too old by now, or whose broadcast was cancelled, of notifications that are nothing but items (state 3:
-- digested), which have no job.
SELECT x.id AS window_id, n.id, n.project_id, n.priority, n.traceparent
FROM unnest($1::uuid[], $2::int[]) AS x (id, project_id)
CROSS JOIN LATERAL (  -- OFFSET 0: see load_deliveries
    SELECT * FROM digest_item i WHERE i.window_id = x.id OFFSET 0) i
CROSS JOIN LATERAL (
    SELECT * FROM notification n
    WHERE n.project_id = x.project_id AND n.id = i.notification_id AND n.id >= $3 AND n.id <= $4 OFFSET 0) n
CROSS JOIN LATERAL (
    SELECT * FROM run r WHERE r.project_id = n.project_id AND r.id = n.id AND r.id >= $3 AND r.id <= $4 OFFSET 0) r
LEFT JOIN LATERAL (
    SELECT b.cancelled_at FROM broadcast b WHERE b.id = n.broadcast_id AND b.project_id = n.project_id OFFSET 0) b
    ON n.broadcast_id IS NOT NULL
WHERE (n.expires_at <= $5::timestamptz OR b.cancelled_at IS NOT NULL) AND n.cancelled_at IS NULL
  AND r.state = 3 AND r.digest_id = x.id
ORDER BY n.id;

-- name: load_items
-- What each window's digest is made of: its newest items, at most `most`, and what is true of all of them. $4 and $5 bound the
-- ids of the items. Whoever was cancelled, or is too old by now, is none. The data of a broadcast stand there.
SELECT x.id AS window_id, i.*
FROM unnest($1::uuid[], $2::int[], $3::smallint[]) AS x (id, project_id, most)
CROSS JOIN LATERAL (
    SELECT n.id, coalesce(n.send_at, n.created_at) AS at, coalesce(n.data, b.data)::text AS data,
           coalesce(n.metadata, b.metadata)::text AS metadata, coalesce(n.options, b.options)::text AS options,
           n.user_id, n.to_channel, n.to_address, n.at_most_once, n.test, n.locale, n.traceparent,
           (count(*) OVER ())::int AS total, min(coalesce(n.send_at, n.created_at)) OVER () AS since,
           min(n.priority) OVER () AS urgency,
           CASE WHEN bool_and(n.expires_at IS NOT NULL) OVER () THEN max(n.expires_at) OVER () END AS ends_at
    FROM digest_item i
    CROSS JOIN LATERAL (  -- OFFSET 0: see load_deliveries
        SELECT * FROM notification n
        WHERE n.project_id = i.project_id AND n.id = i.notification_id AND n.id >= $4 AND n.id <= $5 OFFSET 0) n
    LEFT JOIN LATERAL (
        SELECT * FROM broadcast b WHERE b.id = n.broadcast_id AND b.project_id = n.project_id OFFSET 0) b
        ON n.broadcast_id IS NOT NULL
    WHERE i.window_id = x.id AND n.cancelled_at IS NULL AND b.cancelled_at IS NULL
      AND (n.expires_at IS NULL OR n.expires_at > $6::timestamptz)
    ORDER BY at DESC, n.id DESC LIMIT x.most) i
ORDER BY x.id, i.at, i.id;

-- name: insert_digests
INSERT INTO notification (id, project_id, type_version_id, user_id, to_channel, to_address, priority, channels,
                          at_most_once, test, locale, data, metadata, expires_at, traceparent, options, items, created_at)
SELECT id, project_id, type_version_id, user_id, to_channel, to_address, priority, channels,
       at_most_once, test, locale, data::json, metadata::json, expires_at, traceparent, options::json, items,
       $18::timestamptz
FROM unnest($1::uuid[], $2::int[], $3::int[], $4::text[], $5::smallint[], $6::text[], $7::smallint[], $8::smallint[],
            $9::bool[], $10::bool[], $11::text[], $12::text[], $13::text[], $14::timestamptz[], $15::text[], $16::text[],
            $17::int[])
     AS n (id, project_id, type_version_id, user_id, to_channel, to_address, priority, channels,
           at_most_once, test, locale, data, metadata, expires_at, traceparent, options, items);

-- name: delete_windows
-- With their items.
-- any project: windows that the caller's transaction has locked
WITH emptied AS (
    DELETE FROM digest_item WHERE window_id = ANY ($1::uuid[])
)
DELETE FROM digest_window WHERE id = ANY ($1::uuid[]);

-- name: lock_windows_of
-- The windows that these notifications wait in, one after the other. Whoever closes or joins one is waited for.
SELECT w.id FROM digest_window w
WHERE w.id = ANY (ARRAY(
    SELECT i.window_id FROM unnest($2::uuid[]) AS x (id)
    CROSS JOIN LATERAL (  -- OFFSET 0: see load_deliveries
        SELECT * FROM digest_item i WHERE i.notification_id = x.id OFFSET 0) i
    WHERE i.project_id = $1))
ORDER BY w.target COLLATE "C", w.key COLLATE "C" FOR UPDATE;

-- name: delete_items
DELETE FROM digest_item
WHERE project_id = $1 AND window_id = ANY ($2::uuid[]) AND notification_id = ANY ($3::uuid[])
RETURNING notification_id;
