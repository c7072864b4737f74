-- name: load_notification
SELECT n.*, coalesce(n.metadata, b.metadata)::text AS metadata_text, r.id IS NOT NULL AS planned, r.state, r.until,
       r.reason AS run_reason, r.digest_id, r.trail::text AS trail
FROM notification n
LEFT JOIN run r ON r.project_id = n.project_id AND r.id = n.id
LEFT JOIN broadcast b ON b.project_id = n.project_id AND b.id = n.broadcast_id
WHERE n.project_id = $1 AND n.id = $2;

-- name: load_trail
SELECT trail::text FROM run WHERE project_id = $1 AND id = $2;

-- name: load_family_deliveries
SELECT d.*, a.provider, a.key AS account, coalesce(j.lease_until IS NOT NULL, false) AS leased
FROM delivery d
LEFT JOIN job j ON j.id = d.id AND d.status = 0
LEFT JOIN account a ON a.project_id = d.project_id AND a.id = coalesce(d.account_id, j.account_id)
WHERE d.project_id = $1 AND d.notification_id = $2 AND d.id >= $3 AND d.id <= $4
ORDER BY d.created_at, d.id;

-- name: load_events
SELECT e.*, a.provider FROM event e
LEFT JOIN account a ON a.project_id = e.project_id AND a.id = e.account_id
WHERE e.project_id = $1 AND e.notification_id = $2 AND e.id >= $3 AND e.id <= $4
ORDER BY e.at, e.id;

-- name: list_notifications
-- Newest first. $3 bounds the ids from below (`since`), $2 from above (the cursor). Status and channel filter deliveries.
-- $5, the user, has a query of its own below: one plan cannot serve both.
SELECT n.id, n.type_version_id, n.user_id, n.to_channel, n.to_address, n.priority, n.created_at, n.send_at, n.cancelled_at,
       d.statuses, r.id IS NOT NULL AS planned, r.state, r.reason AS run_reason
FROM notification n
LEFT JOIN run r ON r.project_id = n.project_id AND r.id = n.id
LEFT JOIN LATERAL (
    SELECT array_agg(d.status) AS statuses FROM delivery d
    WHERE d.project_id = n.project_id AND d.notification_id = n.id
      AND d.id >= (overlay(n.id::text placing '0000-000000000000' from 20))::uuid AND d.id <= (overlay(n.id::text placing 'ffff-ffffffffffff' from 20))::uuid
) d ON true
WHERE n.project_id = $1 AND n.id < $2 AND n.id >= $3
  AND ($4::int[] IS NULL OR n.type_version_id = ANY ($4))
  AND $5::text IS NULL
  AND (($6::smallint IS NULL AND $7::smallint IS NULL) OR EXISTS (
      SELECT 1 FROM delivery f
      WHERE f.project_id = n.project_id AND f.notification_id = n.id
        AND f.id >= (overlay(n.id::text placing '0000-000000000000' from 20))::uuid
        AND f.id <= (overlay(n.id::text placing 'ffff-ffffffffffff' from 20))::uuid
        AND ($6::smallint IS NULL OR f.status = $6) AND ($7::smallint IS NULL OR f.channel = $7)))
ORDER BY n.id DESC LIMIT $8;

-- name: list_user_notifications
-- Newest first. $3 bounds the ids from below (`since`), $2 from above (the cursor). Status and channel filter deliveries.
-- The same for one user.
SELECT n.id, n.type_version_id, n.user_id, n.to_channel, n.to_address, n.priority, n.created_at, n.send_at, n.cancelled_at,
       d.statuses, r.id IS NOT NULL AS planned, r.state, r.reason AS run_reason
FROM notification n
LEFT JOIN run r ON r.project_id = n.project_id AND r.id = n.id
LEFT JOIN LATERAL (
    SELECT array_agg(d.status) AS statuses FROM delivery d
    WHERE d.project_id = n.project_id AND d.notification_id = n.id
      AND d.id >= (overlay(n.id::text placing '0000-000000000000' from 20))::uuid AND d.id <= (overlay(n.id::text placing 'ffff-ffffffffffff' from 20))::uuid
) d ON true
WHERE n.project_id = $1 AND n.id < $2 AND n.id >= $3
  AND ($4::int[] IS NULL OR n.type_version_id = ANY ($4))
  AND n.user_id = $5::text
  AND (($6::smallint IS NULL AND $7::smallint IS NULL) OR EXISTS (
      SELECT 1 FROM delivery f
      WHERE f.project_id = n.project_id AND f.notification_id = n.id
        AND f.id >= (overlay(n.id::text placing '0000-000000000000' from 20))::uuid
        AND f.id <= (overlay(n.id::text placing 'ffff-ffffffffffff' from 20))::uuid
        AND ($6::smallint IS NULL OR f.status = $6) AND ($7::smallint IS NULL OR f.channel = $7)))
ORDER BY n.id DESC LIMIT $8;

-- name: list_type_versions
SELECT id FROM type_version WHERE project_id = $1 AND type_key = $2;
