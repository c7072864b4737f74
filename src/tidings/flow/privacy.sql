-- What there is of a user, to give it to them or to take it away. Ids of the flow tables are bounded; see tidings.ids.

-- ------------------------------------------------------------ erase

-- name: load_traces
-- Whether there is anything of a user: themselves, what was sent to them, or an erasure that is under way.
SELECT EXISTS (SELECT FROM app_user WHERE project_id = $1 AND id = $2)
    OR EXISTS (SELECT FROM erasure WHERE project_id = $1 AND user_id = $2)
    OR EXISTS (SELECT FROM notification WHERE project_id = $1 AND user_id = $2);

-- name: list_user_notifications
-- By id, from after $3 to $4.
SELECT id FROM notification WHERE project_id = $1 AND user_id = $2 AND id > $3 AND id <= $4 ORDER BY id LIMIT $5;

-- name: lock_user_notifications
SELECT id FROM notification
WHERE project_id = $1 AND user_id = $2 AND id = ANY ($3::uuid[]) AND id >= $4 AND id <= $5
ORDER BY id FOR UPDATE;

-- name: load_user_deliveries
-- Those of each notification are a short range of the key.
SELECT d.id, d.notification_id, d.channel, d.address, d.account_id, d.provider_id
FROM unnest($2::uuid[], $3::uuid[], $4::uuid[]) AS x (id, low, high)
CROSS JOIN LATERAL (
    SELECT * FROM delivery d
    WHERE d.project_id = $1 AND d.id >= x.low AND d.id <= x.high AND d.id >= $5 AND d.id <= $6
      AND d.notification_id = x.id OFFSET 0) d
ORDER BY d.id;

-- name: load_user_events
SELECT e.id, e.account_id, e.provider_id
FROM unnest($2::uuid[], $3::uuid[], $4::uuid[]) AS x (id, low, high)
CROSS JOIN LATERAL (
    SELECT * FROM event e
    WHERE e.project_id = $1 AND e.id >= x.low AND e.id <= x.high AND e.id >= $5 AND e.id <= $6
      AND e.notification_id = x.id OFFSET 0) e
ORDER BY e.id;

-- name: blank_events
UPDATE event SET detail = NULL, provider_id = NULL
WHERE project_id = $1 AND id = ANY ($2::uuid[]) AND id >= $3 AND id <= $4
  AND (detail IS NOT NULL OR provider_id IS NOT NULL);

-- name: blank_deliveries
-- That something was sent, when and what became of it, stays: it is counted.
UPDATE delivery SET address = '', provider_id = NULL
WHERE project_id = $1 AND id = ANY ($2::uuid[]) AND id >= $3 AND id <= $4;

-- name: blank_runs
UPDATE run SET trail = NULL WHERE project_id = $1 AND id = ANY ($2::uuid[]) AND id >= $3 AND id <= $4;

-- name: blank_notifications
UPDATE notification SET user_id = NULL, to_channel = NULL, to_address = NULL, data = NULL, content = NULL,
    metadata = NULL, options = NULL, once_key = NULL, traceparent = NULL
WHERE project_id = $1 AND id = ANY ($2::uuid[]) AND id >= $3 AND id <= $4;

-- name: delete_letters_of
DELETE FROM dead_letter WHERE project_id = $1 AND delivery_id = ANY ($2::uuid[]);

-- name: delete_messages_of
-- What hooks were, or were to be, told of these notifications: their ids are in the family. Without its message, a job ends.
DELETE FROM hook_message WHERE project_id = $1 AND id = ANY (ARRAY(
    SELECT m.id FROM unnest($2::uuid[], $3::uuid[]) AS x (low, high)
    CROSS JOIN LATERAL (
        SELECT m.id FROM hook_message m WHERE m.project_id = $1 AND m.id >= x.low AND m.id <= x.high OFFSET 0) m));

-- name: delete_refs
DELETE FROM provider_ref r USING unnest($2::int[], $3::text[]) AS x (account_id, provider_id)
WHERE r.project_id = $1 AND r.account_id = x.account_id AND r.provider_id = x.provider_id
  AND r.account_id = ANY ($2) AND r.provider_id = ANY ($3);  -- see lock_cancelled

-- name: delete_early_of
-- Reports that wait for their send name addresses. There are few of them: a send is settled within seconds.
DELETE FROM early_receipt WHERE project_id = $1 AND report ->> 'address' = ANY ($2::text[]);

-- name: delete_inbound_of
DELETE FROM inbound_message m USING unnest($2::smallint[], $3::text[]) AS x (channel, value)
WHERE m.project_id = $1 AND m.channel = x.channel AND m.sender = x.value;

-- name: delete_inbound_notices
-- What hooks are to be told of text messages that came from them.
DELETE FROM hook_message
WHERE project_id = $1 AND event = 'sms.inbound' AND (body::json #>> '{data,sender}') = ANY ($2::text[]);

-- name: delete_endpoints_of
DELETE FROM webhook_health WHERE project_id = $1 AND address = ANY ($2::text[]);

-- name: list_windows_of
SELECT id FROM digest_window WHERE project_id = $1 AND target = ANY ($2::text[]);

-- name: delete_windows_of
WITH emptied AS (DELETE FROM digest_item WHERE project_id = $1 AND window_id = ANY ($2::uuid[]))
DELETE FROM digest_window WHERE project_id = $1 AND id = ANY ($2::uuid[]);

-- name: delete_counters_of
DELETE FROM cap_counter WHERE project_id = $1 AND target = ANY ($2::text[]);

-- name: delete_once_of
DELETE FROM send_once WHERE project_id = $1 AND target = ANY ($2::text[]);

-- name: list_naming_broadcasts
-- Broadcasts that name the user in a list, or whose cursor stands at them.
SELECT b.id FROM broadcast b
WHERE b.project_id = $1
  AND ((b.audience::jsonb #> '{to,users}') ? $2::text OR (b.audience::jsonb #> '{exclude,users}') ? $2::text
       OR EXISTS (SELECT FROM broadcast_cohort c WHERE c.broadcast_id = b.id AND c.after_user = $2::text))
ORDER BY b.id;

-- name: blank_audiences
UPDATE broadcast b SET audience = (
    SELECT jsonb_object_agg(part.key, CASE
        WHEN part.value ? 'users' THEN jsonb_set(part.value, '{users}', (part.value -> 'users') - $3::text)
        ELSE part.value END)
    FROM jsonb_each(b.audience::jsonb) part)
WHERE b.project_id = $1 AND b.id = ANY ($2::uuid[]);

-- name: blank_cursors
-- Only where nothing is left to tell: a cursor that moves on does so by itself.
UPDATE broadcast_cohort SET after_user = ''
WHERE project_id = $1 AND broadcast_id = ANY ($2::uuid[]) AND after_user = $3 AND ended_at IS NOT NULL;

-- ------------------------------------------------------------ export

-- name: export_user
SELECT id, locale, time_zone, region, attributes, preferences, quiet_hours, segments, created_at, updated_at
FROM app_user WHERE project_id = $1 AND id = $2;

-- name: export_addresses
SELECT channel, value, created_at, dropped_at FROM address WHERE project_id = $1 AND user_id = $2 ORDER BY channel, value;

-- name: export_consents
-- By user; those of an address are a list of their own.
SELECT id, at, channel, address, category_key, type_key, decision, actor, source, wording, ip, user_agent
FROM consent WHERE project_id = $1 AND user_id = $2 AND id > $3 ORDER BY id LIMIT $4;

-- name: export_address_consents
SELECT c.id, c.at, c.channel, c.address, c.category_key, c.type_key, c.decision, c.actor, c.source, c.wording, c.ip,
       c.user_agent
FROM unnest($2::smallint[], $3::text[]) AS x (channel, value)
JOIN consent c ON c.project_id = $1 AND c.channel = x.channel AND c.address = x.value AND c.user_id IS NULL
ORDER BY c.id LIMIT 10000;

-- name: export_topics
SELECT topic_key AS key, created_at FROM topic_member
WHERE project_id = $1 AND user_id = $2 AND topic_key > $3 ORDER BY topic_key LIMIT $4;

-- name: export_engagement
SELECT channel, opened, clicked, last_opened_at, last_clicked_at, hours FROM user_engagement
WHERE project_id = $1 AND user_id = $2 ORDER BY channel;

-- name: export_inbox
SELECT seq, delivery_id, notification_id, title, body, url, actions, category_key, created_at, seen_at, read_at, clicked_at,
       archived_at
FROM inbox_item WHERE project_id = $1 AND user_id = $2 AND seq > $3 ORDER BY seq LIMIT $4;

-- name: export_notifications
SELECT n.id, (SELECT t.type_key FROM type_version t WHERE t.project_id = n.project_id AND t.id = n.type_version_id) AS type,
       n.priority, n.locale, n.data, n.content, n.metadata, n.options, n.broadcast_id, n.once_key, n.items, n.send_at,
       n.expires_at, n.cancelled_at, n.test, n.created_at, r.trail
FROM notification n
LEFT JOIN LATERAL (  -- OFFSET 0: see load_deliveries
    SELECT r.trail FROM run r WHERE r.project_id = n.project_id AND r.id = n.id OFFSET 0) r ON true
WHERE n.project_id = $1 AND n.user_id = $2 AND n.id > $3 ORDER BY n.id LIMIT $4;

-- name: export_deliveries
SELECT d.id, d.notification_id, d.channel, d.address, d.status, d.reason, d.attempts, d.engagement, d.machine_engagement,
       d.locale, d.variant, d.provider_id, d.segments, d.created_at, d.sent_at, d.delivered_at, d.ended_at,
       (SELECT l.at FROM dead_letter l WHERE l.project_id = d.project_id AND l.delivery_id = d.id) AS dead_letter_at
FROM unnest($2::uuid[], $3::uuid[], $4::uuid[]) AS x (id, low, high)
CROSS JOIN LATERAL (
    SELECT * FROM delivery d
    WHERE d.project_id = $1 AND d.id >= x.low AND d.id <= x.high AND d.id >= $5 AND d.id <= $6
      AND d.notification_id = x.id OFFSET 0) d
ORDER BY d.id;

-- name: export_events
SELECT e.id, e.notification_id, e.delivery_id, e.kind, e.attempt, e.at, e.reason, e.provider_id, e.detail
FROM unnest($2::uuid[], $3::uuid[], $4::uuid[]) AS x (id, low, high)
CROSS JOIN LATERAL (
    SELECT * FROM event e
    WHERE e.project_id = $1 AND e.id >= x.low AND e.id <= x.high AND e.id >= $5 AND e.id <= $6
      AND e.notification_id = x.id OFFSET 0) e
ORDER BY e.at, e.id;

-- name: export_messages
-- What hooks are still to be told of these notifications, or could not be.
SELECT m.event_id, m.event, m.body::json AS body, m.created_at, m.failed_at
FROM unnest($2::uuid[], $3::uuid[]) AS x (low, high)
CROSS JOIN LATERAL (
    SELECT * FROM hook_message m WHERE m.project_id = $1 AND m.id >= x.low AND m.id <= x.high OFFSET 0) m
ORDER BY m.id;

-- name: export_suppressions
SELECT s.channel, s.address, s.stream, s.reason, s.note, s.created_at
FROM unnest($2::smallint[], $3::text[]) AS x (channel, value)
JOIN suppression s ON s.project_id = $1 AND s.channel = x.channel AND s.address = x.value
ORDER BY s.channel, s.address, s.stream LIMIT 10000;

-- name: export_inbound
SELECT m.id, m.channel, m.sender, m.recipient, m.body, m.keyword, m.at
FROM unnest($2::smallint[], $3::text[]) AS x (channel, value)
JOIN inbound_message m ON m.project_id = $1 AND m.channel = x.channel AND m.sender = x.value
ORDER BY m.at, m.id LIMIT 10000;

-- name: export_early
SELECT report, created_at FROM early_receipt
WHERE project_id = $1 AND report ->> 'address' = ANY ($2::text[]) ORDER BY created_at LIMIT 10000;

-- name: export_endpoints
SELECT address, failing_since, reason, told_at FROM webhook_health WHERE project_id = $1 AND address = ANY ($2::text[]);

-- name: export_digests
SELECT w.id, w.key, w.reason, w.opened_at, w.closes_at, (
    SELECT json_agg(i.notification_id) FROM digest_item i WHERE i.project_id = w.project_id AND i.window_id = w.id) AS items
FROM digest_window w WHERE w.project_id = $1 AND w.target = ANY ($2::text[]) ORDER BY w.id;

-- name: export_counters
SELECT target, key, hits, emptied_at FROM cap_counter WHERE project_id = $1 AND target = ANY ($2::text[]) ORDER BY key;

-- name: export_once
SELECT target, key, notification_id, at FROM send_once
WHERE project_id = $1 AND target = ANY ($2::text[]) ORDER BY target, key LIMIT 10000;

-- name: export_audit
SELECT id, at, actor, action, before, after FROM audit
WHERE project_id = $1 AND object COLLATE "C" = 'user:' || $2 AND id > $3 ORDER BY id LIMIT $4;
