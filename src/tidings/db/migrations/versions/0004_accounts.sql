-- Accounts: usage, costs, quotas, health and learned pace.

-- Amounts of money are whole micro-units of the account's currency: 7900 is 0.0079.
ALTER TABLE account
    ADD COLUMN quotas   jsonb NOT NULL DEFAULT '{}',  -- {"day": {"messages": n, "spend": micro}, "month": {…}}
    ADD COLUMN costs    jsonb NOT NULL DEFAULT '{}',  -- {"US": micro, "*": micro}: of a message, or of a part of one
    ADD COLUMN currency text;

-- What an account has used. Of one with quotas that is what its workers have leased, and a lease is never more than
-- what is left; of the others it is counted after the fact.
CREATE TABLE account_usage (
    account_id  integer NOT NULL REFERENCES account ON DELETE CASCADE,
    project_id  integer NOT NULL,
    period      smallint NOT NULL,           -- 1: the day that begins at `begins`, 2: the month; UTC
    begins      date NOT NULL,
    messages    bigint NOT NULL DEFAULT 0,
    spend       bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (account_id, period, begins)
) WITH (fillfactor = 50);

-- The workers add what they see; one of them makes of it, every few seconds, how well the account does.
ALTER TABLE account_state
    ADD COLUMN paused_until    timestamptz,                         -- as the vendor asked (Retry-After)
    ADD COLUMN exhausted_until timestamptz,                         -- a quota has run out until then
    ADD COLUMN ok              integer NOT NULL DEFAULT 0,          -- these six: since `weighed_at`
    ADD COLUMN failed          integer NOT NULL DEFAULT 0,
    ADD COLUMN taken           integer NOT NULL DEFAULT 0,          -- attempts that were not throttled
    ADD COLUMN throttled       integer NOT NULL DEFAULT 0,
    ADD COLUMN receipts        integer NOT NULL DEFAULT 0,
    ADD COLUMN receipt_seconds double precision NOT NULL DEFAULT 0,
    ADD COLUMN weighed_at      timestamptz NOT NULL DEFAULT 'epoch',
    ADD COLUMN errors          double precision NOT NULL DEFAULT 0, -- moving share of failures, 0 to 1
    ADD COLUMN latency         double precision,                    -- moving average: seconds from sent to delivered
    ADD COLUMN health          double precision NOT NULL DEFAULT 1, -- 0 to 1
    ADD COLUMN factor          double precision NOT NULL DEFAULT 1, -- the effective weight is this part of the configured
    ADD COLUMN learned_rate    double precision,                    -- messages per second; NULL: nothing learned
    ADD COLUMN learned_peak    double precision;                    -- the rate at which the vendor said it was too much
