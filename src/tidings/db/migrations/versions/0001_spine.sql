-- The spine: what the whole road stands on.
--
-- project_id leads every key: projects are isolated by construction.
-- The flow tables (notification, run, delivery, event) are range-partitioned by day on the UUIDv7 id; children share
-- their parent's first eight bytes, so one notification lives in one partition and its children are a short range of
-- the primary key. There are no foreign keys among them: partitions are dropped whole.
-- Numbers for channel, priority, status and kind are those of tidings.model.words.

-- ---------------------------------------------------------------- directory

CREATE TABLE project (
    id          integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key         text NOT NULL UNIQUE CHECK (key ~ '^[a-z0-9][a-z0-9-]{0,39}$'),
    name        text NOT NULL,
    settings    jsonb NOT NULL DEFAULT '{}',
    created_at  timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE api_key (
    id          uuid PRIMARY KEY,
    project_id  integer NOT NULL REFERENCES project,
    name        text NOT NULL,
    hash        bytea NOT NULL,              -- SHA-256 of the 256-bit secret
    scopes      text[] NOT NULL,
    test        boolean NOT NULL DEFAULT false,
    expires_at  timestamptz,
    revoked_at  timestamptz,
    created_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX api_key_by_project ON api_key (project_id, id);

CREATE TABLE app_user (
    project_id  integer NOT NULL REFERENCES project,
    id          text NOT NULL,
    locale      text,
    time_zone   text,
    attributes  jsonb NOT NULL DEFAULT '{}',
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, id)
);

CREATE TABLE address (
    project_id  integer NOT NULL,
    user_id     text NOT NULL,
    channel     smallint NOT NULL,
    value       text NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    dropped_at  timestamptz,                 -- the provider said it does not exist any more
    PRIMARY KEY (project_id, user_id, channel, value),
    FOREIGN KEY (project_id, user_id) REFERENCES app_user ON DELETE CASCADE
);

CREATE TABLE category (
    project_id  integer NOT NULL REFERENCES project,
    key         text NOT NULL,
    name        text NOT NULL,
    description text NOT NULL DEFAULT '',
    required    boolean NOT NULL DEFAULT false,
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, key)
);

CREATE TABLE template (
    project_id        integer NOT NULL REFERENCES project,
    key               text NOT NULL,
    name              text NOT NULL DEFAULT '',
    published_version integer,               -- NULL: only drafts so far
    latest_version    integer NOT NULL DEFAULT 0,
    created_at        timestamptz NOT NULL DEFAULT now(),
    updated_at        timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, key)
);

CREATE TABLE template_version (
    id           integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    project_id   integer NOT NULL,
    template_key text NOT NULL,
    version      integer NOT NULL,
    content      jsonb NOT NULL,             -- {"default_locale": "en", "channels": {channel: {locale: {field: source}}}}
    required     text[] NOT NULL DEFAULT '{}',
    published_at timestamptz,
    created_at   timestamptz NOT NULL DEFAULT now(),
    UNIQUE (project_id, template_key, version),
    FOREIGN KEY (project_id, template_key) REFERENCES template ON DELETE CASCADE
);

CREATE TABLE type (
    project_id      integer NOT NULL REFERENCES project,
    key             text NOT NULL,
    current_version integer NOT NULL,
    archived_at     timestamptz,
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, key)
);

CREATE TABLE type_version (
    id           integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    project_id   integer NOT NULL,
    type_key     text NOT NULL,
    version      integer NOT NULL,
    definition   jsonb NOT NULL,             -- as given, normalised
    category_key text NOT NULL,
    template_key text NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    UNIQUE (project_id, type_key, version)
);

CREATE TABLE account (
    id           integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    project_id   integer NOT NULL REFERENCES project,
    key          text NOT NULL,
    channel      smallint NOT NULL,
    provider     text NOT NULL,
    config       jsonb NOT NULL DEFAULT '{}',
    secret       bytea,                      -- AES-GCM of the secret half of the configuration
    secret_key   text,                       -- which master key sealed it
    weight       integer NOT NULL DEFAULT 100 CHECK (weight >= 0),
    rate         double precision CHECK (rate > 0),       -- messages per second; NULL: no pace
    burst        integer NOT NULL DEFAULT 1 CHECK (burst > 0),
    concurrency  integer NOT NULL DEFAULT 64 CHECK (concurrency > 0),  -- sends in flight per worker process
    enabled      boolean NOT NULL DEFAULT true,
    test         boolean NOT NULL DEFAULT false,          -- the simulator that test keys and simulator addresses use
    revision     integer NOT NULL DEFAULT 1,
    created_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now(),
    UNIQUE (project_id, key)
);

-- Hot and small: pace and breaker of each account, one row each, never indexed but by its key.
CREATE TABLE account_state (
    account_id  integer PRIMARY KEY REFERENCES account ON DELETE CASCADE,
    project_id  integer NOT NULL,
    tat         timestamptz NOT NULL DEFAULT '-infinity', -- GCRA: theoretical arrival time of the next message
    open_until  timestamptz                                -- circuit breaker: no sends before
) WITH (fillfactor = 50);

CREATE TABLE audit (
    id          uuid PRIMARY KEY,
    project_id  integer NOT NULL,
    at          timestamptz NOT NULL DEFAULT now(),
    actor       text NOT NULL,               -- 'key', 'cli', 'system'
    api_key_id  uuid,
    action      text NOT NULL,               -- 'user.put', 'template.publish', …
    object      text NOT NULL,               -- what it was done to
    before      jsonb,
    after       jsonb
);
CREATE INDEX audit_by_project ON audit (project_id, id);

CREATE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'audit rows are never changed';
END $$;
CREATE TRIGGER audit_is_append_only BEFORE UPDATE OR DELETE ON audit
    FOR EACH ROW EXECUTE FUNCTION audit_is_append_only();

CREATE TABLE suppression (
    project_id  integer NOT NULL REFERENCES project,
    channel     smallint NOT NULL,
    address     text NOT NULL,
    reason      text NOT NULL,
    delivery_id uuid,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, channel, address)
);

-- ---------------------------------------------------------------- flow

CREATE TABLE idempotency (
    project_id  integer NOT NULL,
    key         text NOT NULL,
    fingerprint bytea NOT NULL,              -- SHA-256 of the canonical request
    status      smallint NOT NULL,
    answer      json NOT NULL,
    expires_at  timestamptz NOT NULL,
    PRIMARY KEY (project_id, key)
);
CREATE INDEX idempotency_by_expiry ON idempotency USING brin (expires_at);

CREATE TABLE notification (
    id              uuid NOT NULL,
    project_id      integer NOT NULL,
    type_version_id integer,                 -- NULL: said directly, see content
    user_id         text,
    to_channel      smallint,                -- ad hoc: one address, no user
    to_address      text,
    priority        smallint NOT NULL,
    channels        smallint,                -- bit (1 << channel) for each that the request allows; NULL: all
    at_most_once    boolean NOT NULL DEFAULT false,
    test            boolean NOT NULL DEFAULT false,
    locale          text,
    data            json,
    content         json,
    metadata        json,
    send_at         timestamptz,
    expires_at      timestamptz,
    cancelled_at    timestamptz,
    traceparent     text,
    created_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, id)
) PARTITION BY RANGE (id);
CREATE INDEX notification_by_user ON notification (project_id, user_id, id) WHERE user_id IS NOT NULL;

-- Where a notification stands in its type's steps.
CREATE TABLE run (
    id          uuid NOT NULL,               -- the notification's
    project_id  integer NOT NULL,
    step        smallint NOT NULL,           -- the next one; equal to the number of steps when done
    planned_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, id)
) PARTITION BY RANGE (id);

CREATE TABLE delivery (
    id                  uuid NOT NULL,
    project_id          integer NOT NULL,
    notification_id     uuid NOT NULL,
    channel             smallint NOT NULL,
    status              smallint NOT NULL,
    attempts            smallint NOT NULL DEFAULT 0,
    engagement          smallint NOT NULL DEFAULT 0,
    machine_engagement  smallint NOT NULL DEFAULT 0,
    template_version_id integer,
    account_id          integer,             -- of the last attempt
    address             text NOT NULL,
    locale              text,
    variant             text,
    reason              text,
    provider_id         text,
    sent_at             timestamptz,
    delivered_at        timestamptz,
    ended_at            timestamptz,
    created_at          timestamptz NOT NULL DEFAULT now(),
    replayed_at         timestamptz,         -- an operator sent it again; its time for retries counts from here
    PRIMARY KEY (project_id, id)
) PARTITION BY RANGE (id);

CREATE TABLE event (
    id              uuid NOT NULL,
    project_id      integer NOT NULL,
    notification_id uuid NOT NULL,
    delivery_id     uuid NOT NULL,
    kind            smallint NOT NULL,
    attempt         smallint,
    account_id      integer,
    at              timestamptz NOT NULL DEFAULT now(),
    reason          text,
    provider_id     text,
    detail          json,                    -- the raw evidence
    PRIMARY KEY (project_id, id)
) PARTITION BY RANGE (id);

-- The job table is narrow and hot: its size is the backlog. A job's id is what it is about: the notification (plan, and
-- later its timers) or the delivery (send), so each has at most one job at a time. The lease is not indexed: claiming
-- is a HOT update. epoch counts the claims; an answer that carries an old one comes too late.
CREATE TABLE job (
    id          uuid PRIMARY KEY,
    due_at      timestamptz NOT NULL,
    lease_until timestamptz,
    project_id  integer NOT NULL,
    epoch       integer NOT NULL DEFAULT 0,
    account_id  integer,                     -- leased: the account it is sent with; free: the one it must use, if any
    kind        smallint NOT NULL,
    lane        smallint NOT NULL,
    priority    smallint NOT NULL,
    attempt     smallint NOT NULL DEFAULT 0, -- attempts that have been made
    traceparent text
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000,
        autovacuum_analyze_scale_factor = 0.1, autovacuum_vacuum_cost_delay = 0, autovacuum_vacuum_insert_threshold = -1);
CREATE INDEX job_due ON job (lane, priority, project_id, due_at);

-- A vendor's id of a message, for vendors that do not echo ours. Receipts that overtake the send wait here.
CREATE TABLE provider_ref (
    account_id      integer NOT NULL,
    provider_id     text NOT NULL,
    project_id      integer NOT NULL,
    delivery_id     uuid,                    -- NULL: a receipt came first
    created_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (account_id, provider_id)
);

CREATE TABLE dead_letter (
    project_id      integer NOT NULL,
    delivery_id     uuid NOT NULL,
    notification_id uuid NOT NULL,
    channel         smallint NOT NULL,
    reason          text NOT NULL,
    attempts        smallint NOT NULL,
    at              timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, delivery_id)
);

CREATE TABLE inbox_counter (
    project_id  integer NOT NULL,
    user_id     text NOT NULL,
    last_seq    bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (project_id, user_id)
) WITH (fillfactor = 50);

CREATE TABLE inbox_item (
    project_id      integer NOT NULL,
    user_id         text NOT NULL,
    seq             bigint NOT NULL,         -- per user, without gaps, in commit order
    delivery_id     uuid NOT NULL,
    notification_id uuid NOT NULL,
    title           text NOT NULL,
    body            text NOT NULL,
    url             text,
    category_key    text,
    created_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, user_id, seq)
);

-- ---------------------------------------------------------------- measure

CREATE TABLE dimension (
    id                  integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    project_id          integer NOT NULL,
    type_version_id     integer NOT NULL DEFAULT 0,      -- 0 stands for none in all of these
    category_key        text NOT NULL DEFAULT '',
    channel             smallint NOT NULL DEFAULT 0,
    account_id          integer NOT NULL DEFAULT 0,
    template_version_id integer NOT NULL DEFAULT 0,
    variant             text NOT NULL DEFAULT '',
    locale              text NOT NULL DEFAULT '',
    UNIQUE (project_id, type_version_id, category_key, channel, account_id, template_version_id, variant, locale)
);

CREATE TABLE rollup_delta (
    dimension_id integer NOT NULL,
    project_id   integer NOT NULL,
    minute       timestamptz NOT NULL,
    kind         smallint NOT NULL,          -- tidings.model.words.EventKind
    n            integer NOT NULL
);

CREATE TABLE rollup (
    project_id   integer NOT NULL,
    dimension_id integer NOT NULL,
    minute       timestamptz NOT NULL,
    kind         smallint NOT NULL,
    n            bigint NOT NULL,
    PRIMARY KEY (project_id, minute, dimension_id, kind)
);
