-- name: load_plans
-- Everything that planning decides on, for many notifications: the request, the user, the addresses that are usable and
-- which streams of each are suppressed. $3 and $4 bound the ids, so that only their partitions are touched.
SELECT n.id, n.project_id, n.type_version_id, n.user_id, n.to_channel, n.to_address, n.priority, n.channels, n.test,
       n.locale, (n.cancelled_at IS NOT NULL OR b.cancelled_at IS NOT NULL) AS cancelled, n.expires_at,
       u.id IS NOT NULL AS user_exists, u.locale AS user_locale,
       a.channels AS address_channels, a.addresses, a.suppressed,
       CASE WHEN n.to_address IS NOT NULL THEN (
           SELECT string_agg(s.stream, E'\n') FROM suppression s
           WHERE s.project_id = n.project_id AND s.channel = n.to_channel AND s.address = n.to_address) END AS to_suppressed,
       n.items, n.once_key, nullif(u.preferences::text, '{}') AS preferences, u.quiet_hours::text AS quiet_hours,
       u.time_zone, u.region, nullif(u.segments, 0) AS segments, coalesce($5::timestamptz, now()) AS now
FROM unnest($1::uuid[], $2::int[]) AS x (id, project_id)
CROSS JOIN LATERAL (  -- OFFSET 0: see load_deliveries
    SELECT * FROM notification n
    WHERE n.project_id = x.project_id AND n.id = x.id AND n.id >= $3 AND n.id <= $4 OFFSET 0) n
LEFT JOIN LATERAL (
    SELECT b.cancelled_at FROM broadcast b
    WHERE n.broadcast_id IS NOT NULL AND b.project_id = n.project_id AND b.id = n.broadcast_id OFFSET 0) b ON true
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

-- name: load_runs
-- Where these notifications stand.
SELECT r.id, r.step, r.place, r.pending, r.until, r.trail::text
FROM unnest($1::uuid[], $2::int[]) AS x (id, project_id)
CROSS JOIN LATERAL (  -- OFFSET 0: see load_deliveries
    SELECT * FROM run r
    WHERE r.project_id = x.project_id AND r.id = x.id AND r.id >= $3 AND r.id <= $4 OFFSET 0) r;

-- name: load_pasts
-- The deliveries that these notifications have. Those of one are a short range of the key; see tidings.ids.
SELECT d.notification_id, d.id, d.channel, d.status, d.engagement, d.step, d.account_id, d.reason
FROM unnest($1::uuid[], $2::int[], $3::uuid[], $4::uuid[]) AS x (id, project_id, low, high)
CROSS JOIN LATERAL (
    SELECT * FROM delivery d
    WHERE d.project_id = x.project_id AND d.id >= x.low AND d.id <= x.high AND d.id >= $5 AND d.id <= $6
      AND d.notification_id = x.id OFFSET 0) d
ORDER BY d.id;

-- name: load_cases
-- What conditions and digest keys ask about.
SELECT n.id, coalesce(n.data, b.data)::text AS data, u.id AS user_id, u.locale, u.time_zone, u.region,
       u.attributes::text AS attributes, u.created_at
FROM unnest($1::uuid[], $2::int[]) AS x (id, project_id)
CROSS JOIN LATERAL (
    SELECT * FROM notification n
    WHERE n.project_id = x.project_id AND n.id = x.id AND n.id >= $3 AND n.id <= $4 OFFSET 0) n
LEFT JOIN LATERAL (
    SELECT b.data FROM broadcast b
    WHERE n.broadcast_id IS NOT NULL AND b.project_id = n.project_id AND b.id = n.broadcast_id OFFSET 0) b ON true
LEFT JOIN LATERAL (
    SELECT * FROM app_user u WHERE u.project_id = n.project_id AND u.id = n.user_id OFFSET 0) u ON true;

-- name: load_hours
-- How often these users were active, by hour of their day, over all channels.
SELECT x.project_id, x.user_id, array_agg(e.n ORDER BY e.hour) AS hours
FROM unnest($1::int[], $2::text[]) AS x (project_id, user_id)
CROSS JOIN LATERAL (
    SELECT h.hour, sum(h.n)::int AS n
    FROM user_engagement g CROSS JOIN LATERAL unnest(g.hours) WITH ORDINALITY AS h (n, hour)
    WHERE g.project_id = x.project_id AND g.user_id = x.user_id GROUP BY h.hour) e
GROUP BY x.project_id, x.user_id;
