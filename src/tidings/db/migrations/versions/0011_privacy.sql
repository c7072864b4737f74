-- Privacy: users who are being erased, and ways to find what names them.

-- An erasure that is under way. The row goes when nothing is left to look for, since it names the user.
CREATE TABLE erasure (
    project_id   integer NOT NULL REFERENCES project,
    user_id      text NOT NULL,
    suppressions boolean NOT NULL DEFAULT false,  -- those of their addresses go, too
    requested_at timestamptz NOT NULL,
    due_at       timestamptz NOT NULL,            -- when a worker looks again
    PRIMARY KEY (project_id, user_id)
);
CREATE INDEX erasure_by_due ON erasure (due_at);

-- A hash, which nobody can walk through: as a tree, look-ups of a user's addresses take it for the better one while the
-- table is empty, and read all of it later.
CREATE INDEX address_by_value ON address USING hash (value);
CREATE INDEX audit_by_object ON audit (project_id, object COLLATE "C", id);
CREATE INDEX inbound_message_by_sender ON inbound_message (project_id, channel, sender);

-- The trail stays append-only; but what it says of a person's data may be taken out when they are erased. That something
-- was done, when and by whom, stays.
CREATE OR REPLACE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND NEW.before IS NULL AND NEW.after IS NULL
       AND (NEW.id, NEW.project_id, NEW.at, NEW.actor, NEW.api_key_id, NEW.action, NEW.object)
           IS NOT DISTINCT FROM (OLD.id, OLD.project_id, OLD.at, OLD.actor, OLD.api_key_id, OLD.action, OLD.object)
    THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'audit rows are never changed';
END $$;
