-- name: lock_notification
SELECT n.id, n.cancelled_at, n.test, n.type_version_id, n.user_id, n.to_channel, n.to_address, t.category_key
FROM notification n
LEFT JOIN type_version t ON t.project_id = n.project_id AND t.id = n.type_version_id
WHERE n.project_id = $1 AND n.id = $2 FOR UPDATE OF n;

-- name: apply_cancelled_at
UPDATE notification SET cancelled_at = coalesce($3::timestamptz, now()) WHERE project_id = $1 AND id = $2;

-- name: load_run
SELECT state FROM run WHERE project_id = $1 AND id = $2;

-- name: leave_digest
-- It is in no digest that is still open; one that has closed holds it.
UPDATE run SET digest_id = NULL
WHERE project_id = $1 AND id = $2 AND EXISTS (SELECT FROM digest_window w WHERE w.id = run.digest_id);

-- name: load_digest
SELECT digest_id FROM run WHERE project_id = $1 AND id = $2;

-- name: stop_run
-- Nothing follows any more. A run that had ended stays as it is.
UPDATE run SET state = 4, reason = 'cancelled', until = NULL, pending = 0 WHERE project_id = $1 AND id = $2 AND state IN (1, 3);

-- name: load_statuses
SELECT id, status, channel FROM delivery
WHERE project_id = $1 AND id >= $3 AND id <= $4 AND notification_id = $2 ORDER BY id;

-- name: apply_cancelled
-- What may have gone out (uncertain) was not stopped for certain: that stays said, and a receipt may still prove it.
UPDATE delivery SET
    status = CASE WHEN reason = 'uncertain' THEN 4 ELSE 6 END,
    reason = CASE WHEN reason = 'uncertain' THEN reason ELSE 'cancelled' END,
    ended_at = coalesce($5::timestamptz, now())
WHERE project_id = $1 AND id = ANY ($2::uuid[]) AND id >= $3 AND id <= $4 AND status = 0
RETURNING id, notification_id, channel, template_version_id, locale, variant, segments, status, reason;

-- name: lock_dead_letters
-- Dead letters to replay: the ones named ($2), or the oldest that fit the filters; none that came after $6.
SELECT d.delivery_id, d.notification_id FROM dead_letter d
WHERE d.project_id = $1 AND ($2::uuid[] IS NULL OR d.delivery_id = ANY ($2::uuid[]))
  AND ($3::text IS NULL OR d.reason = $3) AND ($4::smallint IS NULL OR d.channel = $4)
  AND d.at <= $6
ORDER BY d.delivery_id LIMIT $5 FOR UPDATE SKIP LOCKED;

-- name: load_now
-- any project: the clock by which letters are stamped
SELECT coalesce($1::timestamptz, now());

-- name: load_replays
-- Not what the next of a chain took the place of, unless it was asked for by name ($5): its user has been told already.
SELECT d.id, d.notification_id, d.channel, n.priority, n.traceparent, n.test, n.once_key, n.user_id, n.to_channel, n.to_address
FROM unnest($2::uuid[]) AS x (id)
JOIN delivery d ON d.project_id = $1 AND d.id = x.id AND d.id >= $3 AND d.id <= $4
CROSS JOIN LATERAL (  -- OFFSET 0: see load_deliveries
    SELECT * FROM notification n
    WHERE n.project_id = $1 AND n.id = d.notification_id AND n.id >= $3 AND n.id <= $4 OFFSET 0) n
WHERE d.id = ANY ($2) AND d.status = 4 AND n.cancelled_at IS NULL
  AND ($5 OR d.step IS NULL OR (
      SELECT true FROM delivery o
      WHERE o.project_id = $1 AND o.notification_id = d.notification_id AND o.step = d.step AND o.channel <> d.channel
        AND o.id >= (overlay(d.id::text placing '0000-000000000000' from 20))::uuid
        AND o.id <= (overlay(d.id::text placing 'ffff-ffffffffffff' from 20))::uuid
        AND o.status IN (2, 3) AND o.created_at > d.created_at LIMIT 1) IS NULL)
ORDER BY d.id FOR UPDATE OF d;

-- name: apply_replayed
UPDATE delivery SET status = 0, reason = NULL, ended_at = NULL, replayed_at = coalesce($5::timestamptz, now())
WHERE project_id = $1 AND id = ANY ($2::uuid[]) AND id >= $3 AND id <= $4;

-- name: lift_expiry
-- Whoever replays a letter wants it sent, however old it is.
UPDATE notification SET expires_at = NULL
WHERE project_id = $1 AND id = ANY ($2::uuid[]) AND id >= $3 AND id <= $4
  AND expires_at <= coalesce($5::timestamptz, now());

-- name: delete_dead_letters
DELETE FROM dead_letter WHERE project_id = $1 AND delivery_id = ANY ($2::uuid[]);

-- name: forget_letters
-- Letters of deliveries before $1, at most $2 at a time; answers with how many.
-- any project: housekeeping
WITH gone AS (
    DELETE FROM dead_letter WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM dead_letter WHERE delivery_id < $1 LIMIT $2 FOR UPDATE SKIP LOCKED))
    RETURNING 1
)
SELECT count(*)::int FROM gone;

-- name: list_dead_letters
SELECT delivery_id, notification_id, channel, reason, attempts, at FROM dead_letter
WHERE project_id = $1 AND ($2::uuid IS NULL OR delivery_id < $2)
  AND ($3::text IS NULL OR reason = $3) AND ($4::smallint IS NULL OR channel = $4)
ORDER BY delivery_id DESC LIMIT $5;
