-- name: resolve_refs
-- Both sides, the send and the receipt, upsert the same row: whoever comes second sees the other, since the row's lock
-- makes them wait for each other. Answers with the delivery that a vendor's id stands for, if the send has told it.
INSERT INTO provider_ref AS r (account_id, provider_id, project_id, delivery_id, created_at)
SELECT DISTINCT ON (account_id, provider_id) account_id, provider_id, project_id, delivery_id,
       coalesce($5::timestamptz, now())
FROM unnest($1::int[], $2::text[], $3::int[], $4::uuid[]) AS x (account_id, provider_id, project_id, delivery_id)
ORDER BY account_id, provider_id
ON CONFLICT (account_id, provider_id) DO UPDATE SET delivery_id = coalesce(excluded.delivery_id, r.delivery_id)
    WHERE r.project_id = excluded.project_id
RETURNING account_id, provider_id, project_id, delivery_id, xmax <> 0 AS met;

-- name: insert_early_receipts
INSERT INTO early_receipt (account_id, provider_id, project_id, mark, report, created_at)
SELECT account_id, provider_id, project_id, mark, report::json, coalesce($6::timestamptz, now())
FROM unnest($1::int[], $2::text[], $3::int[], $4::uuid[], $5::text[])
     AS x (account_id, provider_id, project_id, mark, report)
ON CONFLICT DO NOTHING;

-- name: take_early_receipts
DELETE FROM early_receipt e USING unnest($1::int[], $2::text[], $3::int[]) AS x (account_id, provider_id, project_id)
WHERE e.account_id = x.account_id AND e.provider_id = x.provider_id AND e.project_id = x.project_id
  AND e.account_id = ANY ($1) AND e.provider_id = ANY ($2)  -- see lock_cancelled
RETURNING e.account_id, e.provider_id, e.project_id, e.report::text AS report, e.created_at;

-- name: lock_reported
-- The deliveries that receipts are about, each with whether the account that reports ($3; NULL: we saw it ourselves) has
-- had a part in it: an attempt that was settled, or the one that is under way; and whether the very event ($7) is there.
SELECT x.ord, d.id, d.project_id, d.notification_id, d.channel, d.status, d.reason, d.attempts, d.engagement,
       d.machine_engagement, d.account_id, d.address, d.template_version_id, d.locale, d.variant, d.segments, d.provider_id, d.sent_at,
       n.type_version_id, n.user_id, n.test, n.options::text AS options,
       coalesce((SELECT t.category_key FROM type_version t
                 WHERE t.project_id = n.project_id AND t.id = n.type_version_id), '') AS category,
       (SELECT a.provider FROM account a
        WHERE a.project_id = x.project_id AND a.id = coalesce(x.account_id, d.account_id)) AS provider,
       coalesce($6::timestamptz, now()) AS now,
       x.account_id IS NULL OR d.account_id = x.account_id
       OR x.account_id = (SELECT j.account_id FROM job j WHERE j.id = d.id)  -- EXISTS might be hashed: all of the queue read
       OR EXISTS (
           SELECT 1 FROM event e
           WHERE e.project_id = d.project_id AND e.delivery_id = d.id AND e.account_id = x.account_id
             AND e.id >= (overlay(d.id::text placing '0000-000000000000' from 20))::uuid
             AND e.id <= (overlay(d.id::text placing 'ffff-ffffffffffff' from 20))::uuid) AS concerned,
       (SELECT true FROM event e
        WHERE e.project_id = x.project_id AND e.id = x.event_id AND e.id >= $4 AND e.id <= $5) IS TRUE AS recorded
FROM unnest($1::uuid[], $2::int[], $3::int[], $7::uuid[]) WITH ORDINALITY AS x (id, project_id, account_id, event_id, ord)
CROSS JOIN LATERAL (  -- OFFSET 0: see load_deliveries
    SELECT * FROM delivery d
    WHERE d.project_id = x.project_id AND d.id = x.id AND d.id >= $4 AND d.id <= $5 FOR UPDATE OFFSET 0) d
CROSS JOIN LATERAL (
    SELECT * FROM notification n
    WHERE n.project_id = x.project_id AND n.id = d.notification_id AND n.id >= $4 AND n.id <= $5 OFFSET 0) n
ORDER BY x.ord;

-- name: update_reported
UPDATE delivery d SET
    status = x.status,
    reason = x.reason,
    engagement = d.engagement | x.engagement,
    machine_engagement = d.machine_engagement | x.machine_engagement,
    account_id = coalesce(d.account_id, x.account_id),
    provider_id = coalesce(d.provider_id, x.provider_id),
    sent_at = CASE WHEN x.status IN (2, 3) THEN coalesce(d.sent_at, $11::timestamptz, now()) ELSE d.sent_at END,
    delivered_at = CASE WHEN x.status = 3 THEN coalesce(d.delivered_at, $11::timestamptz, now()) ELSE d.delivered_at END,
    ended_at = CASE WHEN x.status >= 3 AND x.status <> d.status THEN coalesce($11::timestamptz, now())
                    WHEN x.status >= 3 THEN d.ended_at END
FROM unnest($1::uuid[], $2::int[], $3::smallint[], $4::text[], $5::smallint[], $6::smallint[], $7::int[], $8::text[])
     AS x (id, project_id, status, reason, engagement, machine_engagement, account_id, provider_id)
WHERE d.project_id = x.project_id AND d.id = x.id AND d.id >= $9 AND d.id <= $10
  AND d.project_id = ANY ($2) AND d.id = ANY ($1);  -- see lock_cancelled

-- name: forget_early
-- any project: housekeeping
WITH gone AS (
    DELETE FROM early_receipt WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM early_receipt WHERE created_at < $1 LIMIT $2 FOR UPDATE SKIP LOCKED))
    RETURNING 1
)
SELECT count(*)::int FROM gone;

-- name: forget_refs
-- any project: housekeeping
WITH gone AS (
    DELETE FROM provider_ref WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM provider_ref WHERE created_at < $1 LIMIT $2 FOR UPDATE SKIP LOCKED))
    RETURNING 1
)
SELECT count(*)::int FROM gone;
