-- Runs: where a notification stands in its type's steps, digests, caps, send-once keys.

ALTER TABLE run
    ADD COLUMN state     smallint NOT NULL DEFAULT 2,  -- tidings.model.words.RunState
    ADD COLUMN place     smallint NOT NULL DEFAULT 0,  -- inside of a step: which of a chain; 1: its timer runs
    ADD COLUMN pending   smallint NOT NULL DEFAULT 0,  -- channels of the step that are put off, as bits
    ADD COLUMN until     timestamptz,                  -- when its timer ends
    ADD COLUMN reason    text,                         -- what it waits for, or why it stopped
    ADD COLUMN digest_id uuid,                         -- the digest that it went into
    ADD COLUMN trail     json;                         -- what each rule answered (tidings.model.rulings); NULL: none had an opinion

ALTER TABLE notification
    ADD COLUMN broadcast_id uuid,                      -- its data are the broadcast's
    ADD COLUMN once_key     text,                      -- at most one with this key reaches the target
    ADD COLUMN items        integer;                   -- a digest of so many; NULL: not a digest

ALTER TABLE delivery
    ADD COLUMN step     smallint,                      -- of the type's steps; NULL: there are none
    ADD COLUMN segments bigint;                        -- the tracked segments that the user was in; NULL: none

-- A digest that is being gathered. Its id is that of the job that closes it, and of the notification that it becomes.
-- `target` is 'u:<user id>', or '<channel>:<address>' for somebody without one.
CREATE TABLE digest_window (
    id              uuid PRIMARY KEY,
    project_id      integer NOT NULL,
    target          text NOT NULL,
    key             text NOT NULL,           -- type, value of the digest key, channels, reason: tidings.flow.digests.to_window_key
    type_version_id integer NOT NULL,        -- the newest version among the items'
    opened_at       timestamptz NOT NULL,
    closes_at       timestamptz NOT NULL,
    latest_at       timestamptz NOT NULL,    -- no item makes it close later than this
    reason          text NOT NULL,
    UNIQUE (project_id, target, key)
) WITH (fillfactor = 70);

CREATE TABLE digest_item (
    project_id      integer NOT NULL,
    window_id       uuid NOT NULL,
    notification_id uuid NOT NULL,
    PRIMARY KEY (window_id, notification_id)  -- not led by the project: each look-up has one index that fits
);
CREATE INDEX digest_item_by_notification ON digest_item (notification_id);

-- What counts against a limit: {notification id: milliseconds since 1970}, pruned as it is written. One row per limit and
-- target, locked by planning in the order of its key, by octets as the program sorts.
CREATE TABLE cap_counter (
    project_id  integer NOT NULL,
    target      text COLLATE "C" NOT NULL,
    key         text COLLATE "C" NOT NULL,   -- which limit: see tidings.flow.caps
    hits        jsonb NOT NULL DEFAULT '{}',
    emptied_at  timestamptz NOT NULL DEFAULT now(),  -- when the last of them leaves the window
    PRIMARY KEY (project_id, target, key)
) WITH (fillfactor = 50);

CREATE TABLE send_once (
    project_id      integer NOT NULL,
    target          text NOT NULL,
    key             text NOT NULL,
    notification_id uuid NOT NULL,
    at              timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, target, key)
);
CREATE INDEX send_once_by_time ON send_once USING brin (at);

-- Taken back by a cancel: what it said is gone, and nobody sees it again.
ALTER TABLE inbox_item ADD COLUMN recalled_at timestamptz;
