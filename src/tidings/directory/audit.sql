-- name: apply_audit
-- The id is a UUIDv7 by the database's clock: a v4 whose first 48 bits are replaced by the time and whose version
-- digit by 7 (RFC 9562, section 5.7).
INSERT INTO audit (id, project_id, at, actor, api_key_id, action, object, before, after)
VALUES (
    (lpad(to_hex((extract(epoch FROM clock_timestamp()) * 1000)::bigint), 12, '0')
        || '7' || substr(replace(gen_random_uuid()::text, '-', ''), 14))::uuid,
    $1, clock_timestamp(), $2, $3, $4, $5, $6::jsonb, $7::jsonb
);

-- name: list_audit
SELECT id, at, actor, api_key_id, action, object, before, after
FROM audit
WHERE project_id = $1
  AND ($2::uuid IS NULL OR id < $2)
  AND ($3::text IS NULL OR object = $3)
  AND ($4::text IS NULL OR action = $4)
ORDER BY id DESC
LIMIT $5;
