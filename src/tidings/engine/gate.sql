-- name: lease_pace
-- GCRA, many accounts at once. tat is when the next message may leave if all so far were evenly spaced; up to `burst`
-- messages may be early, and the tokens of the next $6 are leased ahead. Rows are locked in the order of their keys.
WITH want AS (
    SELECT * FROM unnest($1::int[], $2::int[], $3::float8[], $4::int[], $5::int[])
        AS w (account_id, project_id, rate, burst, wanted)
), held AS (
    SELECT s.account_id, w.rate, w.wanted,
           greatest(s.tat, coalesce($7::timestamptz, clock_timestamp())) AS tat,
           coalesce($7::timestamptz, clock_timestamp()) + $6::interval + make_interval(secs => least((w.burst - 1) / w.rate, 1e9)) AS until
    FROM want w JOIN account_state s ON s.account_id = w.account_id AND s.project_id = w.project_id
    ORDER BY s.account_id FOR UPDATE OF s
), decided AS (
    SELECT account_id, tat, rate,
           greatest(0, least(wanted, ceil(extract(epoch FROM until - tat) * rate)))::int AS granted
    FROM held
)
UPDATE account_state s SET tat = d.tat + make_interval(secs => d.granted / d.rate)
FROM decided d WHERE s.account_id = d.account_id AND d.granted > 0
RETURNING s.account_id, d.granted;

-- name: lease_project_pace
-- The same of projects, without a burst.
WITH want AS (
    SELECT * FROM unnest($1::int[], $2::float8[], $3::int[]) AS w (project_id, rate, wanted)
), held AS (
    SELECT s.project_id, w.rate, w.wanted,
           greatest(s.tat, coalesce($5::timestamptz, clock_timestamp())) AS tat,
           coalesce($5::timestamptz, clock_timestamp()) + $4::interval AS until
    FROM want w JOIN project_pace s ON s.project_id = w.project_id
    ORDER BY s.project_id FOR UPDATE OF s
), decided AS (
    SELECT project_id, tat, rate,
           greatest(0, least(wanted, ceil(extract(epoch FROM until - tat) * rate)))::int AS granted
    FROM held
)
UPDATE project_pace s SET tat = d.tat + make_interval(secs => d.granted / d.rate)
FROM decided d WHERE s.project_id = d.project_id AND d.granted > 0
RETURNING s.project_id, d.granted;

-- name: create_project_pace
INSERT INTO project_pace (project_id) SELECT project_id FROM unnest($1::int[]) AS p (project_id)
ORDER BY project_id ON CONFLICT DO NOTHING;

-- name: apply_opening
UPDATE account_state SET open_until = greatest(open_until, coalesce($4::timestamptz, now()) + $3::interval)
WHERE project_id = $1 AND account_id = $2;

-- name: load_told
-- any project: a worker asks for the accounts it is using
SELECT account_id, factor, learned_rate,
       coalesce(extract(epoch FROM greatest(open_until, paused_until) - coalesce($2::timestamptz, now())), 0)::float8 AS seconds
FROM account_state
WHERE account_id = ANY ($1::int[])
  AND (greatest(open_until, paused_until) > coalesce($2::timestamptz, now()) OR factor < 1 OR learned_rate IS NOT NULL);
