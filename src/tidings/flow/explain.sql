-- name: load_recipient
-- What planning would know of somebody (see load_plans): a user, or an address without one.
SELECT u.id IS NOT NULL AS user_exists, u.locale AS user_locale, u.time_zone, u.region, u.created_at,
       u.attributes::text AS attributes, nullif(u.preferences::text, '{}') AS preferences,
       u.quiet_hours::text AS quiet_hours, a.channels AS address_channels, a.addresses, a.suppressed,
       CASE WHEN $4::text IS NOT NULL THEN (
           SELECT string_agg(s.stream, E'\n') FROM suppression s
           WHERE s.project_id = $1 AND s.channel = $3::smallint AND s.address = $4) END AS to_suppressed,
       coalesce($5::timestamptz, now()) AS now
FROM (VALUES (1)) AS one
LEFT JOIN app_user u ON u.project_id = $1 AND u.id = $2::text
LEFT JOIN LATERAL (
    SELECT array_agg(a.channel ORDER BY a.created_at, a.value) AS channels,
           array_agg(a.value ORDER BY a.created_at, a.value) AS addresses,
           array_agg((
               SELECT string_agg(s.stream, E'\n') FROM suppression s
               WHERE s.project_id = a.project_id AND s.channel = a.channel AND s.address = a.value
           ) ORDER BY a.created_at, a.value) AS suppressed
    FROM address a
    WHERE a.project_id = $1 AND a.user_id = u.id AND a.dropped_at IS NULL
) a ON true;

-- name: load_once
SELECT notification_id FROM send_once WHERE project_id = $1 AND target = $2 AND key = $3;
