-- name: load_token_user
-- Whether the user is there still, since when, and from which origins pages may call.
SELECT u.created_at AS born, p.key AS project_key, p.settings -> 'origins' AS origins
FROM app_user u JOIN project p ON p.id = u.project_id
WHERE u.project_id = $1 AND u.id = $2;

-- name: list_origins
-- any project: a preflight request names none (it bears no token); this only says whether some page may ask at all.
SELECT DISTINCT origin
FROM project CROSS JOIN LATERAL jsonb_array_elements_text(
    CASE jsonb_typeof(settings -> 'origins') WHEN 'array' THEN settings -> 'origins' ELSE '[]' END) AS origin;
