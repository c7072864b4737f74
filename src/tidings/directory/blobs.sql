-- name: put_blobs
-- Those that are there already are only marked as used. Sorted, so that two writers of the same ones never deadlock.
INSERT INTO blob AS b (project_id, hash, size, content)
SELECT $1, hash, octet_length(content), content FROM unnest($2::bytea[], $3::bytea[]) AS x (hash, content)
ORDER BY hash
ON CONFLICT (project_id, hash) DO UPDATE SET used_at = now() WHERE b.used_at < now() - interval '1 hour';

-- name: claim_blobs
-- The sizes of those that are there to stay: marked as used lately, or marked by this statement. One that somebody else is
-- just marking is missing here and found when asked for again.
WITH marked AS (
    UPDATE blob SET used_at = now()
    WHERE project_id = $1 AND hash = ANY (ARRAY(
        SELECT hash FROM blob
        WHERE project_id = $1 AND hash = ANY ($2::bytea[]) AND used_at < now() - interval '1 hour'
        ORDER BY hash FOR UPDATE))
    RETURNING hash, size
)
SELECT hash, size FROM marked
UNION ALL
SELECT hash, size FROM blob
WHERE project_id = $1 AND hash = ANY ($2::bytea[]) AND used_at >= now() - interval '1 hour';

-- name: load_blobs
SELECT b.project_id, b.hash, b.content
FROM unnest($1::int[], $2::bytea[]) AS x (project_id, hash)
CROSS JOIN LATERAL (  -- OFFSET 0: by its key, whatever was planned while the table was empty
    SELECT * FROM blob b WHERE b.project_id = x.project_id AND b.hash = x.hash OFFSET 0) b;

-- name: forget_blobs
-- Blobs that no request has named since $1, at most $2 at a time; answers with how many. Several processes share them out.
-- any project: housekeeping
WITH gone AS (
    DELETE FROM blob WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM blob WHERE used_at < $1 ORDER BY used_at LIMIT $2 FOR UPDATE SKIP LOCKED))
    RETURNING 1
)
SELECT count(*)::int FROM gone;
