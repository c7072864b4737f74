-- name: load_choices
SELECT preferences::text AS preferences, quiet_hours::text AS quiet_hours, time_zone
FROM app_user WHERE project_id = $1 AND id = $2;

-- name: lock_choices
SELECT preferences::text AS preferences, quiet_hours::text AS quiet_hours, time_zone
FROM app_user WHERE project_id = $1 AND id = $2
FOR UPDATE;

-- name: apply_choices
UPDATE app_user SET preferences = $3::jsonb, quiet_hours = $4::jsonb, time_zone = $5, updated_at = now()
WHERE project_id = $1 AND id = $2;

-- name: list_required_categories
-- Which of these categories are required.
SELECT key FROM category WHERE project_id = $1 AND key = ANY ($2::text[]) AND required;

-- name: list_required_types
-- Which of these types are in a category that is required, by their current versions.
SELECT type.key, v.category_key
FROM type
JOIN type_version v ON v.project_id = type.project_id AND v.type_key = type.key AND v.version = type.current_version
JOIN category ON category.project_id = v.project_id AND category.key = v.category_key
WHERE type.project_id = $1 AND type.key = ANY ($2::text[]) AND category.required;

-- name: list_types_with_a_say
-- Types in use that have defaults of their own, and those of $2.
SELECT type.key, v.category_key, coalesce(category.required, false) AS required, category.rules::text AS rules,
       coalesce(v.definition -> 'preferences', '{}')::text AS defaults
FROM type
JOIN type_version v ON v.project_id = type.project_id AND v.type_key = type.key AND v.version = type.current_version
LEFT JOIN category ON category.project_id = v.project_id AND category.key = v.category_key
WHERE type.project_id = $1 AND type.archived_at IS NULL
  AND (type.key = ANY ($2::text[]) OR v.definition -> 'preferences' <> '{}')
ORDER BY type.key
LIMIT $3;
