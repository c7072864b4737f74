-- name: load_whereabouts
-- What tells the users' time zones; of a number only where nothing better is known. They cannot be deleted until this
-- transaction ends.
SELECT u.project_id, u.id AS user_id, u.time_zone, u.region, p.settings ->> 'time_zone' AS default_zone,
       CASE WHEN u.time_zone IS NULL THEN (
           SELECT a.value FROM address a
           WHERE a.project_id = x.project_id AND a.user_id = x.user_id AND a.channel = 2 AND a.dropped_at IS NULL
           ORDER BY a.value LIMIT 1) END AS phone
FROM unnest($1::int[], $2::text[]) AS x (project_id, user_id)
CROSS JOIN LATERAL (  -- OFFSET 0: see load_deliveries
    SELECT * FROM app_user u WHERE u.project_id = x.project_id AND u.id = x.user_id FOR KEY SHARE OFFSET 0) u
JOIN project p ON p.id = x.project_id;

-- name: add_engagement
-- Given in the order of the key, so that two of these wait for each other in one order. An array of arrays cannot be
-- given: the hours come as texts.
INSERT INTO user_engagement AS e
    (project_id, user_id, channel, opened, clicked, last_opened_at, last_clicked_at, hours)
SELECT project_id, user_id, channel, opened, clicked, opened_at, clicked_at, hours::int[]
FROM unnest($1::int[], $2::text[], $3::smallint[], $4::int[], $5::int[], $6::timestamptz[], $7::timestamptz[],
            $8::text[])
     AS x (project_id, user_id, channel, opened, clicked, opened_at, clicked_at, hours)
ON CONFLICT (project_id, user_id, channel) DO UPDATE SET
    opened = e.opened + excluded.opened,
    clicked = e.clicked + excluded.clicked,
    last_opened_at = greatest(e.last_opened_at, excluded.last_opened_at),
    last_clicked_at = greatest(e.last_clicked_at, excluded.last_clicked_at),
    hours = ARRAY(SELECT h.had + h.new
                  FROM unnest(e.hours, excluded.hours) WITH ORDINALITY AS h (had, new, hour) ORDER BY h.hour);
