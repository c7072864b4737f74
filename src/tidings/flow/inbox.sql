-- name: raise_inbox_counters
-- Each user's last sequence number after making room for so many new items.
INSERT INTO inbox_counter AS c (project_id, user_id, last_seq, total, unseen, unread)
SELECT project_id, user_id, n, n, n, n FROM unnest($1::int[], $2::text[], $3::int[]) AS x (project_id, user_id, n)
ORDER BY project_id, user_id
ON CONFLICT (project_id, user_id) DO UPDATE
    SET last_seq = c.last_seq + excluded.last_seq, total = c.total + excluded.total,
        unseen = c.unseen + excluded.unseen, unread = c.unread + excluded.unread
RETURNING project_id, user_id, last_seq;

-- name: insert_inbox_items
INSERT INTO inbox_item (project_id, user_id, seq, changed_seq, delivery_id, notification_id, title, body, url, actions,
                        category_key, created_at)
SELECT project_id, user_id, seq, seq, delivery_id, notification_id, title, body, url, actions::json, category_key,
       coalesce($11::timestamptz, now())
FROM unnest($1::int[], $2::text[], $3::bigint[], $4::uuid[], $5::uuid[], $6::text[], $7::text[], $8::text[], $9::text[],
            $10::text[])
     AS i (project_id, user_id, seq, delivery_id, notification_id, title, body, url, actions, category_key);

-- name: list_items
-- Newest first; those that are archived, or those that are not ($3).
SELECT seq, changed_seq, delivery_id, notification_id, title, body, url, actions, category_key, created_at,
       seen_at, read_at, clicked_at, archived_at
FROM inbox_item
WHERE project_id = $1 AND user_id = $2 AND (archived_at IS NOT NULL) = $3 AND ($4::text IS NULL OR category_key = $4)
  AND seq < $5 AND recalled_at IS NULL
ORDER BY seq DESC LIMIT $6;

-- name: list_unread_items
-- By itself for its index: those who read much have few unread among many.
SELECT seq, changed_seq, delivery_id, notification_id, title, body, url, actions, category_key, created_at,
       seen_at, read_at, clicked_at, archived_at
FROM inbox_item
WHERE project_id = $1 AND user_id = $2 AND read_at IS NULL AND archived_at IS NULL
  AND ($3::text IS NULL OR category_key = $3) AND seq < $4
ORDER BY seq DESC LIMIT $5;

-- name: load_counts
SELECT total, unseen, unread, last_seq FROM inbox_counter WHERE project_id = $1 AND user_id = $2;

-- name: load_changes
-- For many live streams at once: the user (no `born`: deleted), their counts, and up to $4 changes after each stream's place.
SELECT x.ord, u.created_at AS born, coalesce(c.last_seq, 0) AS last_seq, coalesce(c.total, 0) AS total,
       coalesce(c.unseen, 0) AS unseen, coalesce(c.unread, 0) AS unread,
       i.seq, i.changed_seq, i.delivery_id, i.notification_id, i.title, i.body, i.url, i.actions, i.category_key,
       i.created_at, i.seen_at, i.read_at, i.clicked_at, i.archived_at
FROM unnest($1::int[], $2::text[], $3::bigint[]) WITH ORDINALITY AS x (project_id, user_id, after, ord)
LEFT JOIN LATERAL (  -- OFFSET 0: see load_deliveries
    SELECT * FROM app_user u WHERE u.project_id = x.project_id AND u.id = x.user_id OFFSET 0) u ON true
LEFT JOIN LATERAL (
    SELECT * FROM inbox_counter c WHERE c.project_id = x.project_id AND c.user_id = x.user_id OFFSET 0) c ON true
LEFT JOIN LATERAL (
    SELECT * FROM inbox_item i
    WHERE i.project_id = x.project_id AND i.user_id = x.user_id AND i.changed_seq > x.after
    ORDER BY i.changed_seq LIMIT $4) i ON true
ORDER BY x.ord, i.changed_seq;

-- name: lock_inbox
-- One writer at a time in an inbox: marks and new items wait here for each other.
SELECT last_seq, coalesce($3::timestamptz, now()) AS now FROM inbox_counter
WHERE project_id = $1 AND user_id = $2 FOR UPDATE;

-- name: load_items
SELECT seq, changed_seq, delivery_id, notification_id, title, body, url, actions, category_key, created_at,
       seen_at, read_at, clicked_at, archived_at
FROM inbox_item
WHERE project_id = $1 AND user_id = $2 AND delivery_id = ANY ($3::uuid[]) AND recalled_at IS NULL
ORDER BY seq + 0;  -- an expression: the order of an index would tempt the planner to read all of the inbox in it

-- name: load_unread_items
SELECT seq, changed_seq, delivery_id, notification_id, title, body, url, actions, category_key, created_at,
       seen_at, read_at, clicked_at, archived_at
FROM inbox_item
WHERE project_id = $1 AND user_id = $2 AND read_at IS NULL AND archived_at IS NULL AND seq > $3 AND seq <= $4
ORDER BY seq LIMIT $5;

-- name: load_unseen_items
-- What was read was seen, so these are among the unread; see list_unread_items.
SELECT seq, changed_seq, delivery_id, notification_id, title, body, url, actions, category_key, created_at,
       seen_at, read_at, clicked_at, archived_at
FROM inbox_item
WHERE project_id = $1 AND user_id = $2 AND read_at IS NULL AND archived_at IS NULL AND seen_at IS NULL
  AND seq > $3 AND seq <= $4
ORDER BY seq LIMIT $5;

-- name: update_items
UPDATE inbox_item i
SET changed_seq = x.changed_seq, seen_at = x.seen_at, read_at = x.read_at, clicked_at = x.clicked_at,
    archived_at = x.archived_at
FROM unnest($3::bigint[], $4::bigint[], $5::timestamptz[], $6::timestamptz[], $7::timestamptz[], $8::timestamptz[])
     AS x (seq, changed_seq, seen_at, read_at, clicked_at, archived_at)
WHERE i.project_id = $1 AND i.user_id = $2 AND i.seq = x.seq AND i.seq = ANY ($3);  -- see lock_cancelled

-- name: apply_recalled
-- Archived as well, since that takes an item out of lists, counts and live streams.
UPDATE inbox_item
SET recalled_at = coalesce($5::timestamptz, now()), archived_at = coalesce(archived_at, $5::timestamptz, now()),
    changed_seq = $4 + rank, title = '', body = '', url = NULL, actions = NULL
FROM unnest($3::bigint[]) WITH ORDINALITY AS x (of, rank)
WHERE project_id = $1 AND user_id = $2 AND seq = x.of AND seq = ANY ($3);  -- see lock_cancelled

-- name: update_counter
UPDATE inbox_counter SET last_seq = $3, total = total + $4, unseen = unseen + $5, unread = unread + $6
WHERE project_id = $1 AND user_id = $2
RETURNING total, unseen, unread, last_seq;

-- name: lock_engagements
-- What the user did so far with these deliveries, and by what it is counted. Those that retention dropped are not among them.
SELECT d.id, d.notification_id, d.engagement, d.channel, d.account_id, d.template_version_id, d.variant, d.locale, d.segments,
       n.type_version_id, coalesce(n.test, false) AS test,
       (SELECT t.category_key FROM type_version t WHERE t.project_id = $1 AND t.id = n.type_version_id) AS category_key
FROM delivery d
LEFT JOIN LATERAL (  -- OFFSET 0: see load_deliveries
    SELECT n.type_version_id, n.test FROM notification n
    WHERE n.project_id = $1 AND n.id = d.notification_id AND n.id >= $3 AND n.id <= $4 OFFSET 0) n ON true
WHERE d.project_id = $1 AND d.id = ANY ($2::uuid[]) AND d.id >= $3 AND d.id <= $4
ORDER BY d.id FOR UPDATE OF d;

-- name: update_engagements
UPDATE delivery d SET engagement = d.engagement | x.bits
FROM unnest($2::uuid[], $3::smallint[]) AS x (id, bits)
WHERE d.project_id = $1 AND d.id = x.id AND d.id >= $4 AND d.id <= $5 AND d.id = ANY ($2);  -- see lock_cancelled
