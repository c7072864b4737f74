-- Inbox: actions, read state and live streams.
--
-- One sequence per user (inbox_counter.last_seq) numbers new items and changes of items alike, under the counter's row
-- lock: whoever has seen everything up to a number misses nothing by asking for what is above it. So the numbers of the
-- items themselves have gaps where something was marked.

ALTER TABLE inbox_item
    ADD COLUMN actions     json,             -- [{"id", "title", "url"}]; NULL: none
    ADD COLUMN changed_seq bigint,           -- of the last change; the item's own number as long as nothing changed
    ADD COLUMN seen_at     timestamptz,
    ADD COLUMN read_at     timestamptz,
    ADD COLUMN clicked_at  timestamptz,
    ADD COLUMN archived_at timestamptz;
UPDATE inbox_item SET changed_seq = seq;
ALTER TABLE inbox_item ALTER COLUMN changed_seq SET NOT NULL;

CREATE INDEX inbox_item_by_change ON inbox_item (project_id, user_id, changed_seq);
CREATE INDEX inbox_item_by_delivery ON inbox_item (project_id, user_id, delivery_id);
CREATE INDEX inbox_item_unread ON inbox_item (project_id, user_id, seq) WHERE read_at IS NULL AND archived_at IS NULL;

-- How many items there are that are not archived; kept, since a live stream tells it after every change.
ALTER TABLE inbox_counter
    ADD COLUMN total  integer NOT NULL DEFAULT 0,
    ADD COLUMN unseen integer NOT NULL DEFAULT 0,
    ADD COLUMN unread integer NOT NULL DEFAULT 0;
UPDATE inbox_counter c SET total = i.n, unseen = i.n, unread = i.n
FROM (SELECT project_id, user_id, count(*) AS n FROM inbox_item GROUP BY project_id, user_id) i
WHERE i.project_id = c.project_id AND i.user_id = c.user_id;
