-- Choices: what users want to hear, where and when.

ALTER TABLE app_user
    ADD COLUMN preferences jsonb NOT NULL DEFAULT '{}',  -- tidings.directory.preferences.Preferences
    ADD COLUMN quiet_hours jsonb,                        -- tidings.directory.quiet.QuietHours; NULL: none of their own
    ADD COLUMN region      text,                         -- ISO 3166: 'US', 'US-FL'
    ADD COLUMN segments    bigint NOT NULL DEFAULT 0;    -- bit set of the tracked segments they are in; see segment.slot

-- What holds for a category unless a user says otherwise: defaults per channel, frequency, quiet hours, limits
-- (tidings.directory.categories.CategoryRules).
ALTER TABLE category ADD COLUMN rules jsonb NOT NULL DEFAULT '{}';

-- Who agreed to what, or did not any more: one row for every decision, never changed. Erasing a user deletes theirs.
CREATE TABLE consent (
    id           uuid PRIMARY KEY,
    project_id   integer NOT NULL REFERENCES project,
    user_id      text,                     -- NULL: somebody known by their address only
    channel      smallint,                 -- NULL: all
    address      text,
    category_key text,                     -- NULL: all
    type_key     text,
    decision     text NOT NULL,            -- 'in', 'out', 'reset', a frequency, or 'reset_frequency'
    actor        text NOT NULL,            -- 'user', 'key', 'system', 'import'
    source       text NOT NULL,            -- 'page', 'one_click', 'api', 'inbox', 'sms', 'receipt', 'import'
    wording      text,                     -- what they were shown
    ip           text,
    user_agent   text,
    api_key_id   uuid,
    at           timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX consent_by_user ON consent (project_id, user_id, id);
CREATE INDEX consent_by_address ON consent (project_id, channel, address, id) WHERE address IS NOT NULL;

-- When a user was last active on a channel, and at which hours of their day: kept as reports come in, since nothing may
-- be counted over the history.
CREATE TABLE user_engagement (
    project_id      integer NOT NULL,
    user_id         text NOT NULL,
    channel         smallint NOT NULL,
    opened          integer NOT NULL DEFAULT 0,   -- opened, seen or read: each message once
    clicked         integer NOT NULL DEFAULT 0,
    last_opened_at  timestamptz,
    last_clicked_at timestamptz,
    hours           integer[] NOT NULL DEFAULT array_fill(0, ARRAY[24]),  -- by hour of the user's day then
    PRIMARY KEY (project_id, user_id, channel)
) WITH (fillfactor = 70);
