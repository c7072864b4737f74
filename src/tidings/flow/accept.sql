-- name: apply_lock_timeout
-- any project: a property of the transaction
SELECT set_config('lock_timeout', $1, true);

-- name: claim_keys
-- The idempotency keys that are new, or whose day is over. A key that another transaction is just claiming is waited for.
INSERT INTO idempotency AS i (project_id, key, fingerprint, status, answer, expires_at)
SELECT project_id, key, fingerprint, 202, answer::json, coalesce($5::timestamptz, now()) + interval '24 hours'
FROM unnest($1::int[], $2::text[], $3::bytea[], $4::text[]) AS x (project_id, key, fingerprint, answer)
ORDER BY project_id, key
ON CONFLICT (project_id, key) DO UPDATE
    SET fingerprint = excluded.fingerprint, status = excluded.status, answer = excluded.answer,
        expires_at = excluded.expires_at
    WHERE i.expires_at <= coalesce($5::timestamptz, now())
RETURNING project_id, key;

-- name: load_keys
SELECT i.project_id, i.key, i.fingerprint, i.status, i.answer
FROM unnest($1::int[], $2::text[]) AS x (project_id, key)
CROSS JOIN LATERAL (  -- OFFSET 0: see load_deliveries
    SELECT * FROM idempotency i WHERE i.project_id = x.project_id AND i.key = x.key OFFSET 0) i
WHERE i.expires_at > coalesce($3::timestamptz, now());

-- name: insert_notifications
INSERT INTO notification (id, project_id, type_version_id, user_id, to_channel, to_address, priority, channels,
                          at_most_once, test, locale, data, content, metadata, send_at, expires_at, traceparent, options, once_key,
                          created_at)
SELECT id, project_id, type_version_id, user_id, to_channel, to_address, priority, channels,
       at_most_once, test, locale, data::json, content::json, metadata::json, send_at, expires_at, traceparent,
       options::json, once_key, coalesce($20::timestamptz, now())
FROM unnest($1::uuid[], $2::int[], $3::int[], $4::text[], $5::smallint[], $6::text[], $7::smallint[], $8::smallint[],
            $9::bool[], $10::bool[], $11::text[], $12::text[], $13::text[], $14::text[], $15::timestamptz[],
            $16::timestamptz[], $17::text[], $18::text[], $19::text[])
     AS n (id, project_id, type_version_id, user_id, to_channel, to_address, priority, channels,
           at_most_once, test, locale, data, content, metadata, send_at, expires_at, traceparent, options,
           once_key);

-- name: load_users
-- Which of these users exist.
SELECT x.project_id, x.id
FROM unnest($1::int[], $2::text[]) AS x (project_id, id)
CROSS JOIN LATERAL (  -- OFFSET 0: see load_deliveries
    SELECT FROM app_user u WHERE u.project_id = x.project_id AND u.id = x.id OFFSET 0) u;

-- name: forget_keys
-- Keys whose day is over, at most $1 at a time; answers with how many. Several processes share them out.
-- any project: housekeeping
WITH gone AS (
    DELETE FROM idempotency WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM idempotency WHERE expires_at < now() - interval '1 hour' LIMIT $1 FOR UPDATE SKIP LOCKED))
    RETURNING 1
)
SELECT count(*)::int FROM gone;
