-- name: load_key_for_access
-- any project: the project is what this finds out.
SELECT api_key.project_id, project.key AS project_key, hash, scopes, test, rate, expires_at, revoked_at
FROM api_key JOIN project ON project.id = api_key.project_id
WHERE api_key.id = $1;

-- name: create_key
INSERT INTO api_key (project_id, id, name, hash, scopes, test, expires_at, rate)
SELECT project.id, $2, $3, $4, $5, $6, $7, $8 FROM project WHERE project.id = $1
RETURNING id, name, scopes, test, rate, expires_at, revoked_at, created_at,
    (SELECT project.key FROM project WHERE project.id = project_id) AS project_key;

-- name: list_keys
SELECT id, name, scopes, test, rate, expires_at, revoked_at, created_at
FROM api_key
WHERE project_id = $1 AND ($2::uuid IS NULL OR id > $2)
ORDER BY id
LIMIT $3;

-- name: load_key
SELECT id, name, scopes, test, rate, expires_at, revoked_at, created_at FROM api_key WHERE project_id = $1 AND id = $2;

-- name: revoke_key
-- No row: it was revoked before, or does not exist.
UPDATE api_key SET revoked_at = now()
WHERE project_id = $1 AND id = $2 AND revoked_at IS NULL
RETURNING id, name, scopes, test, rate, expires_at, revoked_at, created_at;
