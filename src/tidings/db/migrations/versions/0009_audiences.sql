-- Audiences: topics, segments, broadcasts, and rules for events.

CREATE TABLE topic (
    project_id  integer NOT NULL REFERENCES project,
    key         text COLLATE "C" NOT NULL,   -- 'project/42/comments': a prefix is a range
    name        text NOT NULL DEFAULT '',
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, key)
);

CREATE TABLE topic_member (
    project_id  integer NOT NULL,
    topic_key   text COLLATE "C" NOT NULL,
    user_id     text COLLATE "C" NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, topic_key, user_id),
    FOREIGN KEY (project_id, topic_key) REFERENCES topic ON DELETE CASCADE
);
CREATE INDEX topic_member_by_user ON topic_member (project_id, user_id, topic_key);

CREATE TABLE segment (
    project_id  integer NOT NULL REFERENCES project,
    key         text NOT NULL,
    name        text NOT NULL DEFAULT '',
    condition   jsonb NOT NULL,              -- tidings.model.conditions
    slot        smallint CHECK (slot BETWEEN 0 AND 49),  -- tracked: its bit in app_user.segments
    counted     bigint,                      -- members when last counted
    counted_at  timestamptz,
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, key),
    UNIQUE (project_id, slot)
);

-- Slots whose segment is tracked no more. Users still bear the bit until it is cleared; then the slot is free.
CREATE TABLE segment_slot (
    project_id   integer NOT NULL REFERENCES project,
    slot         smallint NOT NULL,
    given_up_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (project_id, slot)
);

-- One request for many. What all of its notifications say stands here once.
CREATE TABLE broadcast (
    id              uuid PRIMARY KEY,
    project_id      integer NOT NULL,
    type_version_id integer NOT NULL,
    audience        json NOT NULL,           -- tidings.flow.audience.Audience
    data            json,
    metadata        json,
    options         json,
    priority        smallint NOT NULL,
    channels        smallint,
    lanes           smallint NOT NULL,       -- the channels that its notifications may come to, as bits: their plan lane
    at_most_once    boolean NOT NULL DEFAULT false,
    test            boolean NOT NULL DEFAULT false,
    locale          text,
    once_key        text,
    expires_after   interval,                -- of each of its notifications
    expires_at      timestamptz,
    rate            double precision,        -- users per second; NULL: as fast as it goes
    paced_until     timestamptz,             -- with a rate: when the next users are due, of whichever cohort
    send_at         timestamptz,
    local_time      timestamp,               -- in each user's own time zone
    status          smallint NOT NULL,       -- tidings.flow.broadcasts.BroadcastStatus
    estimated       bigint NOT NULL,
    expanded        bigint NOT NULL DEFAULT 0,
    traceparent     text,
    created_at      timestamptz NOT NULL DEFAULT now(),
    ended_at        timestamptz,
    cancelled_at    timestamptz
) WITH (fillfactor = 70);
CREATE INDEX broadcast_by_project ON broadcast (project_id, id);

-- The users of a broadcast who are told at the same moment: all of them, or those of a time zone. Its id is its job's.
CREATE TABLE broadcast_cohort (
    id            uuid PRIMARY KEY,
    project_id    integer NOT NULL,
    broadcast_id  uuid NOT NULL REFERENCES broadcast ON DELETE CASCADE,
    time_zones    text[],                    -- NULL: whatever the zone; '': users who have none
    others        boolean NOT NULL DEFAULT false,  -- those whose zone is none of `time_zones`
    due_at        timestamptz NOT NULL,
    after_user    text COLLATE "C" NOT NULL DEFAULT '',  -- the cursor: everybody up to here has been told
    expanded      bigint NOT NULL DEFAULT 0,
    ended_at      timestamptz
) WITH (fillfactor = 50);
CREATE INDEX broadcast_cohort_by_broadcast ON broadcast_cohort (broadcast_id);

-- Cursors over users go by octets, as those over topics do, whatever the database's collation is.
ALTER TABLE app_user ALTER COLUMN id TYPE text COLLATE "C";
-- By an expression, so that no look-up of a user by key takes it for the better one while the table is empty.
CREATE INDEX app_user_by_zone ON app_user ((project_id + 0), coalesce(time_zone, ''), id COLLATE "C");

-- Which events become which notifications.
CREATE TABLE event_rule (
    project_id  integer NOT NULL REFERENCES project,
    key         text NOT NULL,
    definition  jsonb NOT NULL,              -- tidings.directory.event_rules.EventRule
    enabled     boolean NOT NULL DEFAULT true,
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, key)
);

-- Analytics tell tracked segments apart.
ALTER TABLE dimension ADD COLUMN segments bigint NOT NULL DEFAULT 0;
ALTER TABLE dimension
    DROP CONSTRAINT dimension_project_id_type_version_id_category_key_channel_a_key;
ALTER TABLE dimension ADD CONSTRAINT dimension_key UNIQUE
    (project_id, type_version_id, category_key, channel, account_id, template_version_id, variant, locale, segments);
