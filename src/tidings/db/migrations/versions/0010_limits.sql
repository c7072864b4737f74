-- Limits: what an API key may ask for, and how fast a project sends.

ALTER TABLE api_key ADD COLUMN rate integer CHECK (rate > 0);  -- requests per minute; NULL: as TIDINGS_API_RATE says

-- What the API processes have taken of a key's minute; each takes a part of it in advance. Made with the first request.
CREATE TABLE key_budget (
    key_id      uuid PRIMARY KEY REFERENCES api_key ON DELETE CASCADE,
    project_id  integer NOT NULL,
    begins      timestamptz NOT NULL,
    used        integer NOT NULL
) WITH (fillfactor = 50);

-- The pace of projects that have one, as account_state has that of accounts. Made when a worker first needs it.
CREATE TABLE project_pace (
    project_id  integer PRIMARY KEY REFERENCES project,
    tat         timestamptz NOT NULL DEFAULT '-infinity'  -- GCRA: theoretical arrival time of the next message
) WITH (fillfactor = 50);
