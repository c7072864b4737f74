-- Content: options and attachments of requests, content-addressed blobs.

-- What a request says beyond its content, by channel, and which blobs go with it (tidings.flow.options). NULL: nothing.
ALTER TABLE notification ADD COLUMN options json;

-- Files that go with messages, each stored once per project, however often it is sent. A notification names them by hash
-- and holds no reference: a blob goes when nothing can have named it any more.
CREATE TABLE blob (
    project_id  integer NOT NULL REFERENCES project,
    hash        bytea NOT NULL CHECK (octet_length(hash) = 32),  -- SHA-256 of the content
    size        integer NOT NULL,
    content     bytea NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    used_at     timestamptz NOT NULL DEFAULT now(),  -- last named by a request, give or take an hour
    PRIMARY KEY (project_id, hash)
);
ALTER TABLE blob ALTER COLUMN content SET STORAGE EXTERNAL;  -- most files are compressed already
CREATE INDEX blob_by_use ON blob (used_at);
