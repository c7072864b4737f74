-- name: lock_cancelled
-- Which of these notifications were cancelled. The lock makes a cancel that is under way wait for us, or us for it.
SELECT n.id, n.cancelled_at IS NOT NULL AS cancelled
FROM unnest($1::uuid[], $2::int[]) AS x (id, project_id)
JOIN notification n ON n.project_id = x.project_id AND n.id = x.id AND n.id >= $3 AND n.id <= $4
-- By key, whichever table the plan begins with; else it may read all that lies between the bounds.
WHERE n.project_id = ANY ($2) AND n.id = ANY ($1)
ORDER BY n.id FOR SHARE OF n;

-- name: update_deliveries
-- Moves each delivery from the status that the decision expected ($9); answers with those that were there.
UPDATE delivery d SET
    status = x.status,
    reason = x.reason,
    attempts = greatest(d.attempts, x.attempts),
    account_id = coalesce(x.account_id, d.account_id),
    provider_id = coalesce(x.provider_id, d.provider_id),
    sent_at = CASE WHEN x.status IN (2, 3) THEN coalesce(d.sent_at, $10::timestamptz, now()) ELSE d.sent_at END,
    delivered_at = CASE WHEN x.status = 3 THEN coalesce($10::timestamptz, now()) ELSE d.delivered_at END,
    ended_at = CASE WHEN x.status >= 3 THEN coalesce($10::timestamptz, now()) END
FROM unnest($1::uuid[], $2::int[], $3::smallint[], $4::text[], $5::smallint[], $6::int[], $7::text[], $9::smallint[])
     AS x (id, project_id, status, reason, attempts, account_id, provider_id, expected)
WHERE d.project_id = x.project_id AND d.id = x.id AND d.id >= $8 AND d.id <= $11 AND d.status = x.expected
  AND d.project_id = ANY ($2) AND d.id = ANY ($1)  -- see lock_cancelled
RETURNING d.id;

-- name: lock_deliveries
SELECT d.id, d.status, d.reason
FROM unnest($1::uuid[], $2::int[]) AS x (id, project_id)
JOIN delivery d ON d.project_id = x.project_id AND d.id = x.id AND d.id >= $3 AND d.id <= $4
WHERE d.project_id = ANY ($2) AND d.id = ANY ($1)  -- see lock_cancelled
ORDER BY d.id FOR UPDATE OF d;
