-- name: lock_category_of_type
-- Keeps it from being deleted until the type that names it is committed.
SELECT key FROM category WHERE project_id = $1 AND key = $2 FOR KEY SHARE;

-- name: lock_template_of_type
SELECT key FROM template WHERE project_id = $1 AND key = $2 FOR KEY SHARE;

-- name: create_type
-- No row: there is one with this key.
INSERT INTO type (project_id, key, current_version) VALUES ($1, $2, 1)
ON CONFLICT DO NOTHING
RETURNING key;

-- name: lock_type
SELECT current_version FROM type WHERE project_id = $1 AND key = $2 FOR UPDATE;

-- name: create_type_version
INSERT INTO type_version (project_id, type_key, version, definition, category_key, template_key)
VALUES ($1, $2, $3, $4::jsonb, $5, $6);

-- name: update_type
-- Makes a version the current one; an archived type is in use again.
UPDATE type SET current_version = $3, archived_at = NULL, updated_at = now() WHERE project_id = $1 AND key = $2;

-- name: archive_type
UPDATE type SET archived_at = now(), updated_at = now()
WHERE project_id = $1 AND key = $2 AND archived_at IS NULL;

-- name: load_type
SELECT type.key, v.version, v.definition, type.archived_at, v.created_at
FROM type JOIN type_version v
    ON v.project_id = type.project_id AND v.type_key = type.key AND v.version = type.current_version
WHERE type.project_id = $1 AND type.key = $2;

-- name: list_types
-- Archived ones are left out.
SELECT type.key, v.version, v.definition, type.archived_at, v.created_at
FROM type JOIN type_version v
    ON v.project_id = type.project_id AND v.type_key = type.key AND v.version = type.current_version
WHERE type.project_id = $1 AND type.archived_at IS NULL AND ($2::text IS NULL OR type.key > $2)
ORDER BY type.key
LIMIT $3;

-- name: list_type_versions
SELECT type.key, v.version, v.definition, type.archived_at, v.created_at
FROM type JOIN type_version v ON v.project_id = type.project_id AND v.type_key = type.key
WHERE type.project_id = $1 AND type.key = $2 AND ($3::bigint IS NULL OR v.version < $3)
ORDER BY v.version DESC
LIMIT $4;
