-- name: create_event_rule
-- No row: there is one with this key.
INSERT INTO event_rule (project_id, key, definition, enabled) VALUES ($1, $2, $3::jsonb, $4)
ON CONFLICT DO NOTHING
RETURNING key, definition, enabled, created_at, updated_at;

-- name: count_event_rules
SELECT count(*) FROM event_rule WHERE project_id = $1;

-- name: find_rule_type
-- No row: there is no such type, or it is archived.
SELECT true FROM type WHERE project_id = $1 AND key = $2 AND archived_at IS NULL;

-- name: lock_event_rule
SELECT key, definition, enabled, created_at, updated_at FROM event_rule WHERE project_id = $1 AND key = $2 FOR UPDATE;

-- name: update_event_rule
UPDATE event_rule SET definition = $3::jsonb, enabled = $4, updated_at = now()
WHERE project_id = $1 AND key = $2
RETURNING key, definition, enabled, created_at, updated_at;

-- name: load_event_rule
SELECT key, definition, enabled, created_at, updated_at FROM event_rule WHERE project_id = $1 AND key = $2;

-- name: list_event_rules
SELECT key, definition, enabled, created_at, updated_at FROM event_rule
WHERE project_id = $1 AND ($2::text IS NULL OR key > $2)
ORDER BY key
LIMIT $3;

-- name: delete_event_rule
DELETE FROM event_rule WHERE project_id = $1 AND key = $2 RETURNING key, definition, enabled, created_at, updated_at;
