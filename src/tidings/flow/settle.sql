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

-- name: insert_events
INSERT INTO event (id, project_id, notification_id, delivery_id, kind, attempt, account_id, reason, provider_id, detail, at)
SELECT id, project_id, notification_id, delivery_id, kind, attempt, account_id, reason, provider_id, detail::json,
       coalesce($11::timestamptz, now())
FROM unnest($1::uuid[], $2::int[], $3::uuid[], $4::uuid[], $5::smallint[], $6::smallint[], $7::int[], $8::text[],
            $9::text[], $10::text[])
     AS e (id, project_id, notification_id, delivery_id, kind, attempt, account_id, reason, provider_id, detail);

-- name: insert_suppressions
INSERT INTO suppression (project_id, channel, address, reason, delivery_id, created_at)
SELECT DISTINCT ON (project_id, channel, address) project_id, channel, address, reason, delivery_id,
       coalesce($6::timestamptz, now())
FROM unnest($1::int[], $2::smallint[], $3::text[], $4::text[], $5::uuid[])
     AS s (project_id, channel, address, reason, delivery_id)
ORDER BY project_id, channel, address
ON CONFLICT DO NOTHING;

-- name: drop_addresses
UPDATE address a SET dropped_at = coalesce($5::timestamptz, now())
FROM unnest($1::int[], $2::text[], $3::smallint[], $4::text[]) AS x (project_id, user_id, channel, value)
WHERE a.project_id = x.project_id AND a.user_id = x.user_id AND a.channel = x.channel AND a.value = x.value
  AND a.dropped_at IS NULL;

-- name: insert_dead_letters
INSERT INTO dead_letter (project_id, delivery_id, notification_id, channel, reason, attempts, at)
SELECT project_id, delivery_id, notification_id, channel, reason, attempts, coalesce($7::timestamptz, now())
FROM unnest($1::int[], $2::uuid[], $3::uuid[], $4::smallint[], $5::text[], $6::smallint[])
     AS d (project_id, delivery_id, notification_id, channel, reason, attempts)
ORDER BY project_id, delivery_id
ON CONFLICT (project_id, delivery_id) DO UPDATE
    SET reason = excluded.reason, attempts = excluded.attempts, at = excluded.at;

-- name: delete_lifted_letters
-- They were given up without knowing; now it is proved that they went out.
DELETE FROM dead_letter d USING unnest($1::int[], $2::uuid[]) AS x (project_id, delivery_id)
WHERE d.project_id = x.project_id AND d.delivery_id = x.delivery_id;

-- name: raise_inbox_counters
-- Each user's last sequence number after making room for so many new items.
INSERT INTO inbox_counter AS c (project_id, user_id, last_seq)
SELECT project_id, user_id, n FROM unnest($1::int[], $2::text[], $3::bigint[]) AS x (project_id, user_id, n)
ORDER BY project_id, user_id
ON CONFLICT (project_id, user_id) DO UPDATE SET last_seq = c.last_seq + excluded.last_seq
RETURNING project_id, user_id, last_seq;

-- name: insert_inbox_items
INSERT INTO inbox_item (project_id, user_id, seq, delivery_id, notification_id, title, body, url, category_key, created_at)
SELECT project_id, user_id, seq, delivery_id, notification_id, title, body, url, category_key,
       coalesce($10::timestamptz, now())
FROM unnest($1::int[], $2::text[], $3::bigint[], $4::uuid[], $5::uuid[], $6::text[], $7::text[], $8::text[], $9::text[])
     AS i (project_id, user_id, seq, delivery_id, notification_id, title, body, url, category_key);
