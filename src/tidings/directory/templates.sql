-- name: create_template
-- No row: there is one with this key.
INSERT INTO template (project_id, key, name) VALUES ($1, $2, $3)
ON CONFLICT DO NOTHING
RETURNING key, name, published_version, latest_version, created_at, updated_at;

-- name: lock_template
SELECT key, name, published_version, latest_version, created_at, updated_at
FROM template WHERE project_id = $1 AND key = $2
FOR UPDATE;

-- name: rename_template
UPDATE template SET name = $3, updated_at = now() WHERE project_id = $1 AND key = $2
RETURNING key, name, published_version, latest_version, created_at, updated_at;

-- name: load_template
SELECT key, name, published_version, latest_version, created_at, updated_at
FROM template WHERE project_id = $1 AND key = $2;

-- name: list_templates
SELECT key, name, published_version, latest_version, created_at, updated_at
FROM template
WHERE project_id = $1 AND ($2::text IS NULL OR key > $2)
ORDER BY key
LIMIT $3;

-- name: create_template_version
WITH numbered AS (
    UPDATE template SET latest_version = latest_version + 1, updated_at = now()
    WHERE project_id = $1 AND key = $2
    RETURNING project_id, key, latest_version
)
INSERT INTO template_version (project_id, template_key, version, content, required)
SELECT project_id, key, latest_version, $3::jsonb, $4 FROM numbered
RETURNING template_key, version, content, required, published_at, created_at;

-- name: publish_template
UPDATE template SET published_version = $3, updated_at = now() WHERE project_id = $1 AND key = $2
RETURNING key, name, published_version, latest_version, created_at, updated_at;

-- name: mark_published
-- The first time counts.
UPDATE template_version SET published_at = now()
WHERE project_id = $1 AND template_key = $2 AND version = $3 AND published_at IS NULL;

-- name: load_template_version
SELECT template_key, version, content, required, published_at, created_at
FROM template_version WHERE project_id = $1 AND template_key = $2 AND version = $3;

-- name: list_template_versions
SELECT template_key, version, content, required, published_at, created_at
FROM template_version
WHERE project_id = $1 AND template_key = $2 AND ($3::bigint IS NULL OR version < $3)
ORDER BY version DESC
LIMIT $4;
