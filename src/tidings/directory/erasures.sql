-- name: put_erasure
-- Asking again begins anew.
INSERT INTO erasure AS e (project_id, user_id, suppressions, requested_at, due_at)
VALUES ($1, $2, $3, coalesce($4::timestamptz, now()), coalesce($4::timestamptz, now()) + $5::interval)
ON CONFLICT (project_id, user_id) DO UPDATE
    SET suppressions = e.suppressions OR excluded.suppressions, requested_at = excluded.requested_at,
        due_at = excluded.due_at
RETURNING project_id, user_id, suppressions, requested_at;

-- name: claim_erasure
-- The one that has been due for longest; it comes back after $2 unless whoever claims it says otherwise.
-- any project: a chore
UPDATE erasure SET due_at = coalesce($1::timestamptz, now()) + $2::interval
WHERE (project_id, user_id) = (
    SELECT project_id, user_id FROM erasure WHERE due_at <= coalesce($1::timestamptz, now())
    ORDER BY due_at LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING project_id, user_id, suppressions, requested_at;

-- name: postpone_erasure
UPDATE erasure SET due_at = $4::timestamptz WHERE project_id = $1 AND user_id = $2 AND requested_at = $3;

-- name: delete_erasure
-- Unless it was asked for anew meanwhile.
DELETE FROM erasure WHERE project_id = $1 AND user_id = $2 AND requested_at = $3;

-- name: list_addresses_of
-- Also those that were dropped.
SELECT channel, value FROM address WHERE project_id = $1 AND user_id = $2;

-- name: list_shared
-- Which of these addresses somebody else has, too.
SELECT x.channel, x.value
FROM unnest($3::smallint[], $4::text[]) AS x (channel, value)
WHERE EXISTS (
    SELECT FROM address a
    WHERE a.project_id = $1 AND a.channel = x.channel AND a.value = x.value AND a.user_id <> $2);

-- name: redact_audit
-- What was recorded of the user: that it was done stays.
UPDATE audit SET before = NULL, after = NULL
WHERE project_id = $1 AND object COLLATE "C" = 'user:' || $2 AND (before IS NOT NULL OR after IS NOT NULL);

-- name: redact_suppressions
-- What was recorded of suppressing these addresses by hand. `;` follows on `:`.
UPDATE audit SET before = NULL, after = NULL
WHERE project_id = $1 AND object COLLATE "C" >= 'suppression:' AND object COLLATE "C" < 'suppression;'
  AND coalesce(after, before) ->> 'address' = ANY ($2::text[]);

-- name: delete_address_consents
DELETE FROM consent c USING unnest($2::smallint[], $3::text[]) AS x (channel, value)
WHERE c.project_id = $1 AND c.channel = x.channel AND c.address = x.value;

-- name: delete_address_suppressions
DELETE FROM suppression s USING unnest($2::smallint[], $3::text[]) AS x (channel, value)
WHERE s.project_id = $1 AND s.channel = x.channel AND s.address = x.value;

-- name: load_reborn
-- When a user of this id was made again; NULL: there is none.
SELECT created_at FROM app_user WHERE project_id = $1 AND id = $2;
