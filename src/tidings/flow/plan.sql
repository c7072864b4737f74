-- name: load_plans
-- Everything that planning decides on, for many notifications: the request, the user, the addresses that are usable and
-- which streams of each are suppressed. $3 and $4 bound the ids, so that only their partitions are touched.
SELECT n.id, n.project_id, n.type_version_id, n.user_id, n.to_channel, n.to_address, n.priority, n.channels, n.test,
       n.locale, n.cancelled_at IS NOT NULL AS cancelled,
       n.expires_at <= coalesce($5::timestamptz, now()) AS expired,
       u.id IS NOT NULL AS user_exists, u.locale AS user_locale,
       a.channels AS address_channels, a.addresses, a.suppressed,
       CASE WHEN n.to_address IS NOT NULL THEN (
           SELECT string_agg(s.stream, E'\n') FROM suppression s
           WHERE s.project_id = n.project_id AND s.channel = n.to_channel AND s.address = n.to_address) END AS to_suppressed
FROM unnest($1::uuid[], $2::int[]) AS x (id, project_id)
CROSS JOIN LATERAL (  -- OFFSET 0: see load_deliveries
    SELECT * FROM notification n
    WHERE n.project_id = x.project_id AND n.id = x.id AND n.id >= $3 AND n.id <= $4 OFFSET 0) n
LEFT JOIN LATERAL (
    SELECT * FROM app_user u WHERE u.project_id = n.project_id AND u.id = n.user_id OFFSET 0) u ON true
LEFT JOIN LATERAL (
    SELECT array_agg(a.channel ORDER BY a.created_at, a.value) AS channels,
           array_agg(a.value ORDER BY a.created_at, a.value) AS addresses,
           array_agg((
               SELECT string_agg(s.stream, E'\n') FROM suppression s
               WHERE s.project_id = a.project_id AND s.channel = a.channel AND s.address = a.value
           ) ORDER BY a.created_at, a.value) AS suppressed
    FROM address a
    WHERE a.project_id = n.project_id AND a.user_id = n.user_id AND a.dropped_at IS NULL
) a ON n.user_id IS NOT NULL;

-- name: insert_deliveries
INSERT INTO delivery (id, project_id, notification_id, channel, status, template_version_id, address, locale, reason,
                      ended_at, created_at)
SELECT id, project_id, notification_id, channel, status, template_version_id, address, locale, reason,
       CASE WHEN reason IS NOT NULL THEN coalesce($10::timestamptz, now()) END, coalesce($10::timestamptz, now())
FROM unnest($1::uuid[], $2::int[], $3::uuid[], $4::smallint[], $5::smallint[], $6::int[], $7::text[], $8::text[], $9::text[])
     AS d (id, project_id, notification_id, channel, status, template_version_id, address, locale, reason);

-- name: insert_runs
INSERT INTO run (id, project_id, step, planned_at)
SELECT id, project_id, step, coalesce($4::timestamptz, now())
FROM unnest($1::uuid[], $2::int[], $3::smallint[]) AS r (id, project_id, step)
ON CONFLICT (project_id, id) DO UPDATE SET step = excluded.step, planned_at = excluded.planned_at;
