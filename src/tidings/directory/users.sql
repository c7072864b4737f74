-- name: create_user
-- No row: there is one with this id.
INSERT INTO app_user (project_id, id, locale, time_zone, region, attributes) VALUES ($1, $2, $3, $4, $5, $6::jsonb)
ON CONFLICT DO NOTHING
RETURNING true;

-- name: lock_user
SELECT true FROM app_user WHERE project_id = $1 AND id = $2 FOR UPDATE;

-- name: load_user
SELECT id, locale, time_zone, region, attributes, created_at, updated_at, (
    SELECT coalesce(jsonb_object_agg(channel, list), '{}')
    FROM (
        SELECT channel, jsonb_agg(value ORDER BY value) AS list
        FROM address
        WHERE address.project_id = app_user.project_id AND user_id = app_user.id AND dropped_at IS NULL
        GROUP BY channel
    ) AS by_channel
) AS addresses
FROM app_user
WHERE project_id = $1 AND id = $2;

-- name: update_user
UPDATE app_user SET locale = $3, time_zone = $4, region = $5, attributes = $6::jsonb, updated_at = now()
WHERE project_id = $1 AND id = $2;

-- name: list_users
SELECT id, locale, time_zone, region, attributes, created_at, updated_at, (
    SELECT coalesce(jsonb_object_agg(channel, list), '{}')
    FROM (
        SELECT channel, jsonb_agg(value ORDER BY value) AS list
        FROM address
        WHERE address.project_id = app_user.project_id AND user_id = app_user.id AND dropped_at IS NULL
        GROUP BY channel
    ) AS by_channel
) AS addresses
FROM app_user
WHERE project_id = $1 AND ($2::text IS NULL OR id > $2)
ORDER BY id
LIMIT $3;

-- name: delete_user
-- Their addresses go with them.
DELETE FROM app_user WHERE project_id = $1 AND id = $2;

-- name: reset_inbox
-- The counter stays: should the id come back, its sequence goes on and no number means two items. Its lock makes whoever
-- stores or marks items wait for us, or us for them; so it comes before delete_inbox.
UPDATE inbox_counter SET total = 0, unseen = 0, unread = 0 WHERE project_id = $1 AND user_id = $2;

-- name: delete_engagement
DELETE FROM user_engagement WHERE project_id = $1 AND user_id = $2;

-- name: delete_inbox
DELETE FROM inbox_item WHERE project_id = $1 AND user_id = $2;

-- name: delete_other_addresses
DELETE FROM address
WHERE project_id = $1 AND user_id = $2
  AND (channel, value) NOT IN (SELECT channel, value FROM unnest($3::smallint[], $4::text[]) AS kept (channel, value));

-- name: apply_addresses
INSERT INTO address (project_id, user_id, channel, value)
SELECT $1, $2, channel, value FROM unnest($3::smallint[], $4::text[]) AS given (channel, value)
ON CONFLICT (project_id, user_id, channel, value) DO UPDATE SET dropped_at = NULL WHERE address.dropped_at IS NOT NULL;
