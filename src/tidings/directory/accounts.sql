-- name: create_account
-- With its row of pace and breaker. No row: there is one with this key.
WITH made AS (
    INSERT INTO account (project_id, key, channel, provider, config, secret, secret_key,
                         weight, rate, burst, concurrency, enabled, quotas, costs, currency)
    VALUES ($1, $2, $3, $4, $5::jsonb, $6, $7, $8, $9, $10, $11, $12, $13::jsonb, $14::jsonb, $15)
    ON CONFLICT DO NOTHING
    RETURNING *
), state AS (
    INSERT INTO account_state (account_id, project_id) SELECT id, project_id FROM made
)
SELECT id, key, channel, provider, config, secret, secret_key, weight, rate, burst, concurrency, enabled, test,
       quotas, costs, currency, revision, created_at, updated_at
FROM made;

-- name: create_builtin_accounts
WITH made AS (
    INSERT INTO account (project_id, key, channel, provider, config, concurrency, test)
    SELECT $1, key, channel, provider, config::jsonb, 1000, test
    FROM unnest($2::text[], $3::smallint[], $4::text[], $5::text[], $6::boolean[])
        AS given (key, channel, provider, config, test)
    ON CONFLICT DO NOTHING
    RETURNING id, project_id
)
INSERT INTO account_state (account_id, project_id) SELECT id, project_id FROM made;

-- name: lock_account
SELECT id, key, channel, provider, config, secret, secret_key, weight, rate, burst, concurrency, enabled, test,
       quotas, costs, currency, revision, created_at, updated_at
FROM account WHERE project_id = $1 AND key = $2
FOR UPDATE;

-- name: update_account
-- A new pace begins now: what the old one had booked ahead would hold it back for as long. What a vendor asked for and
-- what its throttling taught may not hold for other credentials; another quota may have room.
WITH before AS (
    SELECT id, rate, burst FROM account WHERE project_id = $1 AND key = $2
), begun AS (
    UPDATE account_state s SET
        tat = CASE WHEN b.rate IS DISTINCT FROM $7 OR b.burst <> $8 THEN '-infinity' ELSE s.tat END,
        paused_until = NULL, exhausted_until = NULL, learned_rate = NULL, learned_peak = NULL
    FROM before b WHERE s.project_id = $1 AND s.account_id = b.id
)
UPDATE account
SET config = $3::jsonb, secret = $4, secret_key = $5, weight = $6, rate = $7, burst = $8, concurrency = $9,
    enabled = $10, quotas = $11::jsonb, costs = $12::jsonb, currency = $13, revision = revision + 1, updated_at = now()
WHERE project_id = $1 AND key = $2
RETURNING id, key, channel, provider, config, secret, secret_key, weight, rate, burst, concurrency, enabled, test,
          quotas, costs, currency, revision, created_at, updated_at;

-- name: load_account
SELECT id, key, channel, provider, config, secret, secret_key, weight, rate, burst, concurrency, enabled, test,
       quotas, costs, currency, revision, created_at, updated_at
FROM account WHERE project_id = $1 AND key = $2;

-- name: load_reporting_account
-- any project: a callback names it by its key. Disabled ones too: their messages are still on their way.
SELECT a.id, a.project_id, a.key, a.channel, a.provider, a.config, a.secret, a.secret_key, a.revision
FROM account a JOIN project p ON p.id = a.project_id
WHERE p.key = $1 AND a.key = $2 AND a.provider = $3;

-- name: list_listening_projects
-- any project: a worker looks for the accounts whose vendors report over connections of their own
SELECT DISTINCT project_id FROM account WHERE enabled AND provider = ANY ($1::text[]);

-- name: list_accounts
SELECT id, key, channel, provider, config, secret, secret_key, weight, rate, burst, concurrency, enabled, test,
       quotas, costs, currency, revision, created_at, updated_at
FROM account
WHERE project_id = $1 AND ($2::text IS NULL OR key > $2)
ORDER BY key
LIMIT $3;

-- name: load_states
SELECT a.key, s.health, a.weight * s.factor AS effective_weight, s.learned_rate,
       CASE WHEN s.open_until > coalesce($3::timestamptz, now()) THEN s.open_until END AS open_until,
       CASE WHEN s.paused_until > coalesce($3::timestamptz, now()) THEN s.paused_until END AS paused_until,
       CASE WHEN s.exhausted_until > coalesce($3::timestamptz, now()) THEN s.exhausted_until END AS exhausted_until,
       coalesce(day.messages, 0) AS day_messages, coalesce(day.spend, 0) AS day_spend,
       coalesce(month.messages, 0) AS month_messages, coalesce(month.spend, 0) AS month_spend
FROM account a
JOIN account_state s ON s.account_id = a.id
LEFT JOIN account_usage day
    ON day.account_id = a.id AND day.period = 1 AND day.begins = (coalesce($3::timestamptz, now()) AT TIME ZONE 'UTC')::date
LEFT JOIN account_usage month
    ON month.account_id = a.id AND month.period = 2
    AND month.begins = date_trunc('month', coalesce($3::timestamptz, now()) AT TIME ZONE 'UTC')::date
WHERE a.project_id = $1 AND a.key = ANY ($2::text[]);

-- name: delete_account
DELETE FROM account WHERE project_id = $1 AND key = $2;

-- name: notify_config
-- Tells every process that the project's configuration changed. Inside the transaction: it leaves with the commit.
-- any project: names the project in its payload, touches no table
SELECT pg_notify('tidings_config', $1);

-- name: claim_accounts_sealed_otherwise
-- any project: rotates the master key, which is the instance's
SELECT id, project_id, key, secret, secret_key
FROM account
WHERE secret IS NOT NULL AND secret_key IS DISTINCT FROM $1 AND id > $2
ORDER BY id
LIMIT $3
FOR UPDATE;

-- name: apply_resealed
UPDATE account SET secret = $3, secret_key = $4 WHERE project_id = $1 AND id = $2;
