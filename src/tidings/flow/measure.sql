-- name: load_dimensions
SELECT d.id, x.ord
FROM unnest($1::int[], $2::int[], $3::text[], $4::smallint[], $5::int[], $6::int[], $7::text[], $8::text[], $9::bigint[]) WITH ORDINALITY
     AS x (project_id, type_version_id, category_key, channel, account_id, template_version_id, variant, locale,
           segments, ord)
JOIN dimension d USING (project_id, type_version_id, category_key, channel, account_id, template_version_id, variant, locale, segments);

-- name: insert_dimensions
INSERT INTO dimension (project_id, type_version_id, category_key, channel, account_id, template_version_id, variant, locale, segments)
SELECT * FROM unnest($1::int[], $2::int[], $3::text[], $4::smallint[], $5::int[], $6::int[], $7::text[], $8::text[], $9::bigint[])
     AS x (project_id, type_version_id, category_key, channel, account_id, template_version_id, variant, locale, segments)
ORDER BY 1, 2, 3, 4, 5, 6, 7, 8, 9
ON CONFLICT DO NOTHING;

-- name: insert_deltas
INSERT INTO rollup_delta (dimension_id, project_id, minute, kind, n)
SELECT dimension_id, project_id, date_trunc('minute', coalesce($5::timestamptz, now())), kind, n
FROM unnest($1::int[], $2::int[], $3::smallint[], $4::int[]) AS x (dimension_id, project_id, kind, n);

-- name: fold_deltas
-- Moves deltas into the roll-ups, at most $1 at a time. One folder at a time is not required: each takes rows nobody holds.
WITH taken AS (
    DELETE FROM rollup_delta WHERE ctid IN (SELECT ctid FROM rollup_delta LIMIT $1 FOR UPDATE SKIP LOCKED)
    RETURNING project_id, dimension_id, minute, kind, n
), summed AS (
    SELECT project_id, dimension_id, minute, kind, sum(n)::bigint AS n, count(*) AS deltas
    FROM taken GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
), folded AS (
    INSERT INTO rollup AS r (project_id, dimension_id, minute, kind, n)
    SELECT project_id, dimension_id, minute, kind, n FROM summed
    ON CONFLICT (project_id, minute, dimension_id, kind) DO UPDATE SET n = r.n + excluded.n
)
SELECT coalesce(sum(deltas), 0)::int FROM summed;
