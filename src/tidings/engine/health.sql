-- name: apply_observed
-- Adds what one process has seen since it told last, many accounts at once. Rows are locked in the order of their keys.
-- any project: a process tells of the accounts it used
WITH seen AS (
    SELECT * FROM unnest($1::int[], $2::int[], $3::int[], $4::int[], $5::int[], $6::int[], $7::float8[], $8::float8[])
        AS x (account_id, ok, failed, taken, throttled, receipts, receipt_seconds, pause)
), held AS (
    SELECT s.account_id FROM account_state s JOIN seen USING (account_id) ORDER BY s.account_id FOR UPDATE OF s
)
UPDATE account_state s SET
    ok = s.ok + x.ok,
    failed = s.failed + x.failed,
    taken = s.taken + x.taken,
    throttled = s.throttled + x.throttled,
    receipts = s.receipts + x.receipts,
    receipt_seconds = s.receipt_seconds + x.receipt_seconds,
    paused_until = greatest(s.paused_until, coalesce($9::timestamptz, now()) + make_interval(secs => x.pause))
FROM held JOIN seen x USING (account_id) WHERE s.account_id = held.account_id;

-- name: lock_weighing
-- One process at a time; the others have nothing to do.
-- any project: no table is touched
SELECT pg_try_advisory_xact_lock(hashtext('tidings.weigh_accounts'));

-- name: load_vitals
-- The channels of projects on which there is something new, or something to move back: all their accounts that take part.
-- any project: weighs the accounts of all projects, each channel of a project by itself
WITH stirred AS (
    SELECT DISTINCT a.project_id, a.channel
    FROM account_state s JOIN account a ON a.id = s.account_id
    WHERE a.enabled AND NOT a.test AND s.weighed_at <= coalesce($1::timestamptz, now()) - $2::interval
      AND (s.ok > 0 OR s.failed > 0 OR s.throttled > 0 OR s.receipts > 0 OR s.factor < 1 OR s.health < 1
           OR s.errors > 0 OR s.learned_rate IS NOT NULL)
)
SELECT a.id AS account_id, a.project_id, a.channel, a.weight, a.rate, s.ok, s.failed, s.taken, s.throttled, s.receipts,
       s.receipt_seconds, s.errors, s.latency, s.health, s.factor, s.learned_rate, s.learned_peak,
       extract(epoch FROM coalesce($1::timestamptz, now()) - s.weighed_at)::float8 AS seconds
FROM stirred JOIN account a ON a.project_id = stirred.project_id AND a.channel = stirred.channel
JOIN account_state s ON s.account_id = a.id
WHERE a.enabled AND NOT a.test
ORDER BY a.project_id, a.channel, a.id;

-- name: apply_weighed
-- What came in since it was looked at stays for the next time.
-- any project: weighs the accounts of all projects
WITH done AS (
    SELECT * FROM unnest($1::int[], $2::int[], $3::int[], $4::int[], $5::int[], $6::int[], $7::float8[], $8::float8[],
                         $9::float8[], $10::float8[], $11::float8[], $12::float8[], $13::float8[])
        AS x (account_id, ok, failed, taken, throttled, receipts, receipt_seconds, errors, latency, health, factor,
              learned_rate, learned_peak)
), held AS (
    SELECT s.account_id FROM account_state s JOIN done USING (account_id) ORDER BY s.account_id FOR UPDATE OF s
)
UPDATE account_state s SET
    ok = s.ok - x.ok,
    failed = s.failed - x.failed,
    taken = s.taken - x.taken,
    throttled = s.throttled - x.throttled,
    receipts = s.receipts - x.receipts,
    receipt_seconds = s.receipt_seconds - x.receipt_seconds,
    errors = x.errors,
    latency = x.latency,
    health = x.health,
    factor = x.factor,
    learned_rate = x.learned_rate,
    learned_peak = x.learned_peak,
    weighed_at = coalesce($14::timestamptz, now())
FROM held JOIN done x USING (account_id) WHERE s.account_id = held.account_id;
