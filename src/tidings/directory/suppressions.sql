-- name: list_suppressions
-- Newest first; ($6, $7, $8, $9) is where the page before ended.
SELECT channel, address, stream, reason, note, delivery_id, created_at FROM suppression
WHERE project_id = $1 AND ($2::smallint IS NULL OR channel = $2) AND ($3::text IS NULL OR address = $3)
  AND ($4::text IS NULL OR reason = $4) AND ($5::text IS NULL OR stream = $5)
  AND ($6::timestamptz IS NULL OR (created_at, channel, address, stream) < ($6, $7::smallint, $8::text, $9::text))
ORDER BY created_at DESC, channel DESC, address DESC, stream DESC
LIMIT $10;

-- name: put_suppression
-- No row: there is one already; whatever made it stays.
INSERT INTO suppression (project_id, channel, address, stream, reason, note)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT DO NOTHING
RETURNING channel, address, stream, reason, note, delivery_id, created_at;

-- name: load_suppression
SELECT channel, address, stream, reason, note, delivery_id, created_at FROM suppression
WHERE project_id = $1 AND channel = $2 AND address = $3 AND stream = $4;

-- name: delete_suppression
DELETE FROM suppression WHERE project_id = $1 AND channel = $2 AND address = $3 AND stream = $4
RETURNING channel, address, stream, reason, note, delivery_id, created_at;

-- name: list_opt_outs
SELECT s.channel, s.stream FROM unnest($2::smallint[], $3::text[]) AS x (channel, address)
CROSS JOIN LATERAL (
    SELECT s.channel, s.stream FROM suppression s
    WHERE s.project_id = $1 AND s.channel = x.channel AND s.address = x.address AND s.reason = 'opted_out' OFFSET 0) s;

-- name: lift_opt_out
-- What bounced or complained stays.
DELETE FROM suppression WHERE project_id = $1 AND channel = $2 AND address = $3 AND stream = $4 AND reason = 'opted_out'
RETURNING channel, address, stream, reason, note, delivery_id, created_at;
