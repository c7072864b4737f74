-- name: create_category
-- No row: there is one with this key.
INSERT INTO category (project_id, key, name, description, required, rules) VALUES ($1, $2, $3, $4, $5, $6::jsonb)
ON CONFLICT DO NOTHING
RETURNING key, name, description, required, rules::text AS rules, created_at, updated_at;

-- name: lock_category
SELECT key, name, description, required, rules::text AS rules, created_at, updated_at
FROM category WHERE project_id = $1 AND key = $2
FOR UPDATE;

-- name: update_category
UPDATE category SET name = $3, description = $4, required = $5, rules = $6::jsonb, updated_at = now()
WHERE project_id = $1 AND key = $2
RETURNING key, name, description, required, rules::text AS rules, created_at, updated_at;

-- name: load_category
SELECT key, name, description, required, rules::text AS rules, created_at, updated_at
FROM category WHERE project_id = $1 AND key = $2;

-- name: list_categories
SELECT key, name, description, required, rules::text AS rules, created_at, updated_at
FROM category
WHERE project_id = $1 AND ($2::text IS NULL OR key > $2)
ORDER BY key
LIMIT $3;

-- name: delete_category
-- No row: a type that is not archived names it in its current version.
DELETE FROM category
WHERE project_id = $1 AND key = $2
  AND NOT EXISTS (
      SELECT FROM type JOIN type_version ON type_version.project_id = type.project_id
          AND type_version.type_key = type.key AND type_version.version = type.current_version
      WHERE type.project_id = $1 AND type.archived_at IS NULL AND type_version.category_key = $2
  )
RETURNING key;
