-- name: load_failing
-- The addresses of a project that fail at present; at most $2.
SELECT address, failing_since, told_at IS NOT NULL AS told FROM webhook_health WHERE project_id = $1 LIMIT $2;

-- name: insert_failing
INSERT INTO webhook_health (project_id, address, reason, failing_since)
SELECT project_id, address, reason, coalesce($4::timestamptz, now())
FROM unnest($1::int[], $2::text[], $3::text[]) AS f (project_id, address, reason)
ORDER BY project_id, address
ON CONFLICT DO NOTHING;

-- name: delete_failing
DELETE FROM webhook_health h USING unnest($1::int[], $2::text[]) AS f (project_id, address)
WHERE h.project_id = f.project_id AND h.address = f.address
  AND h.project_id = ANY ($1) AND h.address = ANY ($2);  -- see lock_cancelled

-- name: apply_told
-- Marks those that nobody was told of and that have failed since $3 or longer; answers with them.
UPDATE webhook_health h SET told_at = coalesce($4::timestamptz, now())
FROM unnest($1::int[], $2::text[]) AS f (project_id, address)
WHERE h.project_id = f.project_id AND h.address = f.address AND h.told_at IS NULL AND h.failing_since <= $3
  AND h.project_id = ANY ($1) AND h.address = ANY ($2)  -- see lock_cancelled
RETURNING h.project_id, h.address, h.failing_since, h.reason;

-- name: forget_failing
-- any project: housekeeping; an address that is not used any more neither fails nor answers
DELETE FROM webhook_health WHERE failing_since < $1;
