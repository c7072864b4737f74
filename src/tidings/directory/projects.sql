-- name: create_project
-- any project: it makes one. No row: the key is taken.
INSERT INTO project (key, name) VALUES ($1, $2)
ON CONFLICT DO NOTHING
RETURNING id, key, name, created_at, settings::text AS settings;

-- name: load_project
-- any project: the project's own row; its id is bound.
SELECT id, key, name, created_at, settings::text AS settings FROM project WHERE id = $1;

-- name: load_project_by_key
-- any project: it finds one by its key, for the operator.
SELECT id, key, name, created_at, settings::text AS settings FROM project WHERE key = $1;

-- name: list_projects
-- any project: it lists them, for the operator.
SELECT id, key, name, created_at, settings::text AS settings FROM project ORDER BY key;

-- name: lock_project
-- any project: the project's own row; its id is bound.
SELECT id, key, name, created_at, settings::text AS settings FROM project WHERE id = $1 FOR UPDATE;

-- name: update_settings
-- any project: the project's own row; its id is bound.
UPDATE project SET settings = $2::jsonb WHERE id = $1
RETURNING id, key, name, created_at, settings::text AS settings;
