-- name: lease_quota
-- Takes messages and money out of what is left today and this month: all that is asked for, at most a twentieth of what
-- is left, but at least what one message needs ($3, $4) if that is left. A quota of NULL has no end.
-- `rows` less than two: the periods' rows have to be made first. `spent` 1 or 2: that period has not enough left.
WITH today AS (
    SELECT (coalesce($11::timestamptz, now()) AT TIME ZONE 'UTC') AS at
), held AS (
    SELECT u.period, u.begins, u.messages, u.spend
    FROM today JOIN account_usage u ON u.account_id = $1 AND u.project_id = $2
        AND u.begins = date_trunc(CASE u.period WHEN 1 THEN 'day' ELSE 'month' END, today.at)::date
    ORDER BY u.period FOR UPDATE OF u
), remaining AS (
    SELECT count(*)::int AS rows,
           min(q.messages - h.messages) AS messages,
           min(q.spend - h.spend) AS spend,
           max(h.period) FILTER (WHERE q.messages - h.messages < $3 OR q.spend - h.spend < $4) AS spent
    FROM held h
    JOIN (VALUES (1, $7::bigint, $8::bigint), (2, $9::bigint, $10::bigint)) AS q (period, messages, spend)
        ON q.period = h.period
), decided AS (
    SELECT rows, spent,
           least($5::bigint, greatest($3::bigint, coalesce(messages / 20, $5))) AS messages,
           least($6::bigint, greatest($4::bigint, coalesce(spend / 20, $6))) AS spend
    FROM remaining
), taken AS (
    UPDATE account_usage u SET messages = u.messages + d.messages, spend = u.spend + d.spend
    FROM held h, decided d
    WHERE u.account_id = $1 AND u.period = h.period AND u.begins = h.begins AND d.rows = 2 AND d.spent IS NULL
)
SELECT d.rows, d.spent, d.messages, d.spend, today.at::date AS day,
       extract(epoch FROM date_trunc('day', today.at) + interval '1 day' - today.at)::float8 AS day_left,
       extract(epoch FROM date_trunc('month', today.at) + interval '1 month' - today.at)::float8 AS month_left
FROM decided d, today;

-- name: create_usage
INSERT INTO account_usage (account_id, project_id, period, begins)
SELECT $1, $2, p.period, date_trunc(p.name, coalesce($3::timestamptz, now()) AT TIME ZONE 'UTC')::date
FROM (VALUES (1, 'day'), (2, 'month')) AS p (period, name)
ORDER BY p.period
ON CONFLICT DO NOTHING;

-- name: return_quota
-- Gives back what a lease of the day $3 did not use.
WITH held AS (
    SELECT period, begins FROM account_usage
    WHERE account_id = $1 AND project_id = $2
      AND begins = date_trunc(CASE period WHEN 1 THEN 'day' ELSE 'month' END, $3::date)::date
    ORDER BY period FOR UPDATE
)
UPDATE account_usage u SET messages = u.messages - $4, spend = u.spend - $5
FROM held h WHERE u.account_id = $1 AND u.period = h.period AND u.begins = h.begins;

-- name: count_usage
-- What accounts without quotas have used, many at once.
INSERT INTO account_usage (account_id, project_id, period, begins, messages, spend)
SELECT a.id, a.project_id, p.period, date_trunc(p.name, coalesce($5::timestamptz, now()) AT TIME ZONE 'UTC')::date,
       x.messages, x.spend
FROM unnest($1::int[], $2::int[], $3::bigint[], $4::bigint[]) AS x (account_id, project_id, messages, spend)
JOIN account a ON a.id = x.account_id AND a.project_id = x.project_id
CROSS JOIN (VALUES (1, 'day'), (2, 'month')) AS p (period, name)
ORDER BY a.id, p.period
ON CONFLICT (account_id, period, begins)
    DO UPDATE SET messages = account_usage.messages + excluded.messages, spend = account_usage.spend + excluded.spend;

-- name: apply_exhausted
-- Shown to whoever asks why the account sends nothing; workers find it out by themselves.
UPDATE account_state SET exhausted_until = coalesce($4::timestamptz, now()) + make_interval(secs => $3)
WHERE project_id = $1 AND account_id = $2;

-- name: forget_usage
-- any project: housekeeping
DELETE FROM account_usage WHERE begins < $1;
