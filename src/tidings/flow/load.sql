-- name: load_deliveries
-- The one load before sending: the delivery, what it says, and everything that may forbid it now. $3 and $4 bound the ids.
-- OFFSET 0 has each row looked up by its key: else a plan made on empty tables may read all that lies between the bounds.
SELECT x.ord, d.id, d.project_id, d.notification_id, d.channel, d.status, d.address, d.template_version_id, d.locale,
       d.variant, d.reason, n.type_version_id, n.user_id, coalesce(n.data, b.data)::text AS data, n.content::text, n.at_most_once, n.test, n.expires_at,
       (n.cancelled_at IS NOT NULL OR b.cancelled_at IS NOT NULL) AS cancelled,
       coalesce(n.expires_at <= coalesce($5::timestamptz, now()), false) AS expired,
       s.streams AS suppressed,
       n.user_id IS NOT NULL AND u.id IS NULL AS user_deleted,
       coalesce(d.replayed_at, d.created_at) AS queued_at,
       u.time_zone AS user_time_zone, u.attributes::text AS user_attributes,
       n.priority, coalesce(n.metadata, b.metadata)::text AS metadata, coalesce(n.options, b.options)::text AS options,
       d.segments, nullif(u.preferences::text, '{}') AS user_preferences, u.quiet_hours::text AS user_quiet_hours,
       u.region AS user_region, coalesce($5::timestamptz, now()) AS now
FROM unnest($1::uuid[], $2::int[]) WITH ORDINALITY AS x (id, project_id, ord)
CROSS JOIN LATERAL (
    SELECT * FROM delivery d
    WHERE d.project_id = x.project_id AND d.id = x.id AND d.id >= $3 AND d.id <= $4 OFFSET 0) d
CROSS JOIN LATERAL (
    SELECT * FROM notification n
    WHERE n.project_id = x.project_id AND n.id = d.notification_id AND n.id >= $3 AND n.id <= $4 OFFSET 0) n
LEFT JOIN LATERAL (
    SELECT * FROM broadcast b
    WHERE n.broadcast_id IS NOT NULL AND b.project_id = n.project_id AND b.id = n.broadcast_id OFFSET 0) b ON true
LEFT JOIN LATERAL (
    SELECT * FROM app_user u WHERE u.project_id = n.project_id AND u.id = n.user_id OFFSET 0) u ON true
LEFT JOIN LATERAL (
    SELECT string_agg(s.stream, E'\n') AS streams FROM suppression s
    WHERE s.project_id = d.project_id AND s.channel = d.channel AND s.address = d.address) s ON true;
