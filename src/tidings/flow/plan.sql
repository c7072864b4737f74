-- name: load_now
-- any project: the clock by which work is due
SELECT now();

-- name: apply_withdrawn
-- The next of a chain takes their place; their jobs are gone. What may have gone out (uncertain) was not stopped for certain.
UPDATE delivery SET
    status = CASE WHEN reason = 'uncertain' THEN 4 ELSE 6 END,
    reason = CASE WHEN reason = 'uncertain' THEN reason ELSE 'superseded' END,
    ended_at = coalesce($5::timestamptz, now())
WHERE project_id = ANY ($1::int[]) AND id = ANY ($2::uuid[]) AND id >= $3 AND id <= $4 AND status = 0
RETURNING id, project_id, notification_id, channel, template_version_id, locale, status, reason;

-- name: insert_deliveries
INSERT INTO delivery (id, project_id, notification_id, channel, status, template_version_id, address, locale, reason,
                      step, segments, ended_at, created_at)
SELECT id, project_id, notification_id, channel, status, template_version_id, address, locale, reason, step, segments,
       CASE WHEN reason IS NOT NULL THEN coalesce($12::timestamptz, now()) END, coalesce($12::timestamptz, now())
FROM unnest($1::uuid[], $2::int[], $3::uuid[], $4::smallint[], $5::smallint[], $6::int[], $7::text[], $8::text[], $9::text[],
            $10::smallint[], $11::bigint[])
     AS d (id, project_id, notification_id, channel, status, template_version_id, address, locale, reason, step, segments);

-- name: insert_runs
INSERT INTO run (id, project_id, step, state, place, pending, until, reason, digest_id, trail, planned_at)
SELECT id, project_id, step, state, place, pending, until, reason, digest_id, trail::json, coalesce($11::timestamptz, now())
FROM unnest($1::uuid[], $2::int[], $3::smallint[], $4::smallint[], $5::smallint[], $6::smallint[], $7::timestamptz[],
            $8::text[], $9::uuid[], $10::text[])
     AS r (id, project_id, step, state, place, pending, until, reason, digest_id, trail)
ON CONFLICT (project_id, id) DO UPDATE
    SET step = excluded.step, state = excluded.state, place = excluded.place, pending = excluded.pending,
        until = excluded.until, reason = excluded.reason, trail = excluded.trail, planned_at = excluded.planned_at,
        -- What was nothing but an item (state 3) is planned again when the digest goes without it.
        digest_id = CASE WHEN run.state = 3 THEN excluded.digest_id ELSE coalesce(excluded.digest_id, run.digest_id) END;
