-- name: load_hook_subjects
-- For each event, the hooks that want it, and what its payload says of the delivery; $4 and $5 bound the ids, $8 is the
-- time that counts as now. OFFSET 0: see load_deliveries.
SELECT x.ord, h.id AS hook_id, p.key AS project_key, d.channel, d.status, n.user_id, n.metadata::text AS metadata, n.test,
       (SELECT v.type_key FROM type_version v WHERE v.project_id = x.project_id AND v.id = n.type_version_id) AS type_key,
       (SELECT a.provider FROM account a WHERE a.project_id = x.project_id AND a.id = x.account_id) AS provider,
       coalesce($8::timestamptz, now()) AS at
FROM unnest($1::uuid[], $2::int[], $3::uuid[], $6::int[], $7::text[]) WITH ORDINALITY
     AS x (id, project_id, notification_id, account_id, event, ord)
JOIN hook h ON h.project_id = x.project_id AND h.enabled AND h.events && ARRAY['*', x.event]
JOIN project p ON p.id = x.project_id
CROSS JOIN LATERAL (
    SELECT d.channel, d.status FROM delivery d
    WHERE d.project_id = x.project_id AND d.id = x.id AND d.id >= $4 AND d.id <= $5 OFFSET 0) d
CROSS JOIN LATERAL (
    SELECT n.user_id, n.metadata, n.test, n.type_version_id FROM notification n
    WHERE n.project_id = x.project_id AND n.id = x.notification_id AND n.id >= $4 AND n.id <= $5 OFFSET 0) n;

-- name: load_listening
-- For each notice, the hooks that want it.
SELECT x.ord, h.id AS hook_id, p.key AS project_key, coalesce($3::timestamptz, now()) AS at
FROM unnest($1::int[], $2::text[]) WITH ORDINALITY AS x (project_id, event, ord)
JOIN hook h ON h.project_id = x.project_id AND h.enabled AND h.events && ARRAY['*', x.event]
JOIN project p ON p.id = x.project_id;

-- name: insert_hook_messages
INSERT INTO hook_message (id, event_id, project_id, hook_id, event, body, created_at)
SELECT id, event_id, project_id, hook_id, event, body, coalesce($7::timestamptz, now())
FROM unnest($1::uuid[], $2::uuid[], $3::int[], $4::int[], $5::text[], $6::text[])
     AS m (id, event_id, project_id, hook_id, event, body);

-- name: load_hook_messages
-- With whether their hook is there, and enabled. By its key: a plan made on an empty table may read all of it otherwise.
SELECT x.ord, m.id, m.project_id, m.hook_id, m.event_id, m.body, h.enabled
FROM unnest($1::uuid[], $2::int[]) WITH ORDINALITY AS x (id, project_id, ord)
CROSS JOIN LATERAL (
    SELECT * FROM hook_message m WHERE m.project_id = x.project_id AND m.id = x.id OFFSET 0) m
LEFT JOIN hook h ON h.project_id = m.project_id AND h.id = m.hook_id;

-- name: delete_hook_messages
DELETE FROM hook_message m USING unnest($1::uuid[], $2::int[]) AS x (id, project_id)
WHERE m.project_id = x.project_id AND m.id = x.id AND m.project_id = ANY ($2) AND m.id = ANY ($1);

-- name: fail_hook_messages
UPDATE hook_message m SET failed_at = coalesce($5::timestamptz, now()), attempts = x.attempts, detail = x.detail
FROM unnest($1::uuid[], $2::int[], $3::smallint[], $4::text[]) AS x (id, project_id, attempts, detail)
WHERE m.project_id = x.project_id AND m.id = x.id AND m.project_id = ANY ($2) AND m.id = ANY ($1);

-- name: list_failed_messages
SELECT id, event_id, event, attempts, detail, created_at, failed_at FROM hook_message
WHERE project_id = $1 AND hook_id = $2 AND failed_at IS NOT NULL AND ($3::uuid IS NULL OR id < $3)
ORDER BY id DESC LIMIT $4;

-- name: replay_messages
-- Failed messages of a hook that go out again: the ones named ($3), or the oldest; none that failed after $4.
UPDATE hook_message SET failed_at = NULL, attempts = 0, detail = NULL
WHERE project_id = $1 AND id = ANY (ARRAY(
    SELECT id FROM hook_message
    WHERE project_id = $1 AND hook_id = $2 AND failed_at IS NOT NULL AND failed_at <= coalesce($4::timestamptz, now())
      AND ($3::uuid[] IS NULL OR id = ANY ($3))
    ORDER BY id LIMIT $5 FOR UPDATE SKIP LOCKED))
RETURNING id;

-- name: forget_messages
-- Messages that failed before $1, at most $2 at a time; answers with how many.
-- any project: housekeeping
WITH gone AS (
    DELETE FROM hook_message WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM hook_message WHERE failed_at < $1 LIMIT $2 FOR UPDATE SKIP LOCKED))
    RETURNING 1
)
SELECT count(*)::int FROM gone;
