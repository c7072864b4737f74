-- name: load_current_type
-- No row: there is no such type, or it is archived.
SELECT v.id, v.project_id, v.type_key AS key, v.version, v.definition, coalesce(category.required, false) AS required,
       category.rules
FROM type
JOIN type_version v ON v.project_id = type.project_id AND v.type_key = type.key AND v.version = type.current_version
LEFT JOIN category ON category.project_id = v.project_id AND category.key = v.category_key
WHERE type.project_id = $1 AND type.key = $2 AND type.archived_at IS NULL;

-- name: load_type_versions
SELECT v.id, v.project_id, v.type_key AS key, v.version, v.definition, coalesce(category.required, false) AS required,
       category.rules
FROM unnest($1::integer[], $2::integer[]) AS asked (project_id, id)
JOIN type_version v ON v.id = asked.id AND v.project_id = asked.project_id
LEFT JOIN category ON category.project_id = v.project_id AND category.key = v.category_key;

-- name: load_published_template
-- No row: there is no such template, or only drafts of it.
SELECT v.id, v.project_id, v.template_key AS key, v.version, v.content
FROM template
JOIN template_version v
    ON v.project_id = template.project_id AND v.template_key = template.key AND v.version = template.published_version
WHERE template.project_id = $1 AND template.key = $2;

-- name: load_template_versions
SELECT v.id, v.project_id, v.template_key AS key, v.version, v.content
FROM unnest($1::integer[], $2::integer[]) AS asked (project_id, id)
JOIN template_version v ON v.id = asked.id AND v.project_id = asked.project_id;

-- name: load_enabled_accounts
SELECT id, key, channel, provider, config, secret, secret_key, weight, rate, burst, concurrency, test, revision,
       quotas, costs
FROM account
WHERE project_id = $1 AND enabled
ORDER BY id;

-- name: load_enabled_hooks
SELECT id, key, url, secret, secret_key, previous_until
FROM hook
WHERE project_id = $1 AND enabled
ORDER BY id;
