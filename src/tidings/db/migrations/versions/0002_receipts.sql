-- Receipts and tracking: what vendors and recipients report.

-- A suppression holds for a stream of a channel: '' is all of it, a category's key is that category, 'sender:<id>' is
-- what comes from that sender (an answer STOP concerns the sender that it was sent to).
ALTER TABLE suppression ADD COLUMN stream text NOT NULL DEFAULT '';
ALTER TABLE suppression ADD COLUMN note text;               -- whoever suppressed by hand may say why
ALTER TABLE suppression DROP CONSTRAINT suppression_pkey, ADD PRIMARY KEY (project_id, channel, address, stream);
CREATE INDEX suppression_by_time ON suppression (project_id, created_at DESC, channel, address, stream);

-- Receipts that overtook the settling of their send, until it comes; see provider_ref.
CREATE TABLE early_receipt (
    account_id  integer NOT NULL,
    provider_id text NOT NULL,
    project_id  integer NOT NULL,
    mark        uuid NOT NULL,               -- tells a repetition from another fact
    report      json NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (account_id, provider_id, mark)
);
CREATE INDEX early_receipt_by_time ON early_receipt USING brin (created_at);
CREATE INDEX provider_ref_by_time ON provider_ref USING brin (created_at);

-- Text messages that came in: the evidence of every STOP.
CREATE TABLE inbound_message (
    id          uuid PRIMARY KEY,
    project_id  integer NOT NULL,
    account_id  integer NOT NULL,
    channel     smallint NOT NULL,
    sender      text NOT NULL,               -- who wrote
    recipient   text NOT NULL,               -- which of our senders it came to
    body        text NOT NULL,
    keyword     text,                        -- stop, start, help
    provider_id text,
    at          timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX inbound_message_by_time ON inbound_message USING brin (at);

-- Simulators for the channels that are new in this version, for the projects that are older.
WITH made AS (
    INSERT INTO account (project_id, key, channel, provider, config, concurrency, test)
    SELECT p.id, 'simulator-' || c.name, c.channel, 'simulator', '{"outcome": "deliver", "latency_ms": 0}', 1000, true
    FROM project p CROSS JOIN (VALUES ('push', 3), ('chat', 6)) AS c (name, channel)
    ON CONFLICT DO NOTHING
    RETURNING id, project_id
)
INSERT INTO account_state (account_id, project_id) SELECT id, project_id FROM made;
