-- name: create_hook
-- No row: there is one with this key.
INSERT INTO hook (project_id, key, url, events, description, enabled, secret, secret_key)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
ON CONFLICT DO NOTHING
RETURNING id, key, url, events, description, enabled, previous_until, created_at, updated_at;

-- name: count_hooks
SELECT count(*) FROM hook WHERE project_id = $1;

-- name: lock_hook
SELECT id, key, url, events, description, enabled, secret, secret_key, previous_until, created_at, updated_at
FROM hook WHERE project_id = $1 AND key = $2
FOR UPDATE;

-- name: update_hook
UPDATE hook SET url = $3, events = $4, description = $5, enabled = $6, updated_at = now()
WHERE project_id = $1 AND key = $2
RETURNING id, key, url, events, description, enabled, previous_until, created_at, updated_at;

-- name: rotate_hook
UPDATE hook SET secret = $3, secret_key = $4, previous_until = now() + $5::interval, updated_at = now()
WHERE project_id = $1 AND key = $2
RETURNING id, key, url, events, description, enabled, previous_until, created_at, updated_at;

-- name: disable_hook
-- No row: it is gone, or disabled already.
UPDATE hook SET enabled = false, updated_at = now()
WHERE project_id = $1 AND id = $2 AND enabled
RETURNING key;

-- name: load_hook
SELECT id, key, url, events, description, enabled, previous_until, created_at, updated_at
FROM hook WHERE project_id = $1 AND key = $2;

-- name: list_hooks
SELECT id, key, url, events, description, enabled, previous_until, created_at, updated_at
FROM hook
WHERE project_id = $1 AND ($2::text IS NULL OR key > $2)
ORDER BY key
LIMIT $3;

-- name: delete_hook
DELETE FROM hook WHERE project_id = $1 AND key = $2;

-- name: claim_hooks_sealed_otherwise
-- any project: rotates the master key, which is the instance's
SELECT id, project_id, key, secret, secret_key
FROM hook
WHERE secret_key <> $1 AND id > $2
ORDER BY id
LIMIT $3
FOR UPDATE;

-- name: apply_resealed_hook
UPDATE hook SET secret = $3, secret_key = $4 WHERE project_id = $1 AND id = $2;
