-- name: lease_budget
-- Takes a part of what the key $1 has left in this minute: at least $4 or nothing, else up to $5, but no more than a quarter
-- of the rest. No row: it has to be made first. The row is never of a later minute than this, unless the clock went back.
WITH held AS (
    SELECT b.begins = minute.begins OR b.begins = minute.begins + interval '1 minute' AS goes_on, b.begins AS before,
           b.used AS used_before, minute.begins
    FROM (SELECT date_trunc('minute', coalesce($6::timestamptz, now())) AS begins) minute, key_budget b
    WHERE b.key_id = $1 AND b.project_id = $2
    FOR UPDATE OF b
), current AS (
    SELECT CASE WHEN goes_on THEN before ELSE begins END AS begins, CASE WHEN goes_on THEN used_before ELSE 0 END AS used
    FROM held
), decided AS (
    SELECT begins, used,
           CASE WHEN $3::int - used < $4::int THEN 0
                ELSE greatest($4, least($5::int, ($3 - used) / 4)) END AS granted
    FROM current
)
UPDATE key_budget b SET begins = d.begins, used = d.used + d.granted
FROM decided d
WHERE b.key_id = $1 AND b.project_id = $2
RETURNING d.begins, d.granted, greatest(0, $3 - d.used - d.granted) AS remaining,
          extract(epoch FROM d.begins + interval '1 minute' - coalesce($6::timestamptz, clock_timestamp()))::float8 AS seconds;

-- name: create_budget
INSERT INTO key_budget (key_id, project_id, begins, used)
SELECT id, project_id, date_trunc('minute', coalesce($3::timestamptz, now())), 0
FROM api_key WHERE id = $1 AND project_id = $2
ON CONFLICT DO NOTHING;
