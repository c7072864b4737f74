-- Hooks: signed status callbacks out, and the health of webhook endpoints.

CREATE TABLE hook (
    id             integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    project_id     integer NOT NULL REFERENCES project,
    key            text NOT NULL,
    url            text NOT NULL,
    events         text[] NOT NULL,          -- names, or '*'
    description    text NOT NULL DEFAULT '',
    enabled        boolean NOT NULL DEFAULT true,
    secret         bytea NOT NULL,           -- AES-GCM of the secrets that sign: the present one and the one before
    secret_key     text NOT NULL,            -- which master key sealed them
    previous_until timestamptz,              -- until then the one before signs too
    created_at     timestamptz NOT NULL DEFAULT now(),
    updated_at     timestamptz NOT NULL DEFAULT now(),
    UNIQUE (project_id, key)
);

-- What a hook is told, until it has answered. A message that was taken is deleted; one that was given up stays for a
-- while, to be looked at and replayed. The id is that of its job. No foreign key: messages of a hook that is deleted end
-- when their turn comes, and writing them locks no hook.
CREATE TABLE hook_message (
    id          uuid NOT NULL,
    project_id  integer NOT NULL,
    hook_id     integer NOT NULL,
    event_id    uuid NOT NULL,               -- what the receiver sees as webhook-id
    event       text NOT NULL,
    body        text NOT NULL,               -- as it is signed, octet for octet
    attempts    smallint NOT NULL DEFAULT 0, -- when it was given up
    detail      text,                        -- why
    created_at  timestamptz NOT NULL DEFAULT now(),
    failed_at   timestamptz,
    PRIMARY KEY (project_id, id)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000);  -- comes and goes like its job
CREATE INDEX hook_message_failed ON hook_message (project_id, hook_id, id) WHERE failed_at IS NOT NULL;

-- Webhook addresses that fail at present. Written when one begins to fail and when it answers again, not in between.
CREATE TABLE webhook_health (
    project_id    integer NOT NULL,
    address       text NOT NULL,
    failing_since timestamptz NOT NULL DEFAULT now(),
    reason        text NOT NULL,             -- of the first failure
    told_at       timestamptz,               -- when the application was told
    PRIMARY KEY (project_id, address)
);
