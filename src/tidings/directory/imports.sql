-- name: upsert_users
-- Makes users and changes those that there are: what is NULL, and attributes that are not given, stay. Answers with those
-- that it made or changed.
INSERT INTO app_user AS u (project_id, id, locale, time_zone, region, attributes)
SELECT $1, id, locale, time_zone, region, attributes::jsonb
FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::text[])
     AS x (id, locale, time_zone, region, attributes)
ORDER BY id
ON CONFLICT (project_id, id) DO UPDATE SET
    locale = coalesce(excluded.locale, u.locale), time_zone = coalesce(excluded.time_zone, u.time_zone),
    region = coalesce(excluded.region, u.region), attributes = u.attributes || excluded.attributes, updated_at = now()
WHERE (coalesce(excluded.locale, u.locale), coalesce(excluded.time_zone, u.time_zone), coalesce(excluded.region, u.region),
       u.attributes || excluded.attributes) IS DISTINCT FROM (u.locale, u.time_zone, u.region, u.attributes)
RETURNING u.id;

-- name: hold_imported
-- They are not deleted before their addresses and topics are there, and each waits for whoever else changes them.
SELECT id FROM app_user WHERE project_id = $1 AND id = ANY ($2::text[]) ORDER BY id FOR UPDATE;

-- name: delete_replaced_addresses
-- $2 and $3: whose addresses on which channels are given anew; $4 to $6: these addresses.
DELETE FROM address a
USING unnest($2::text[], $3::smallint[]) AS x (user_id, channel)
WHERE a.project_id = $1 AND a.user_id = x.user_id AND a.user_id = ANY ($2::text[]) AND a.channel = x.channel
  AND a.dropped_at IS NULL
  AND (a.user_id, a.channel, a.value) NOT IN (SELECT * FROM unnest($4::text[], $5::smallint[], $6::text[]))
RETURNING a.user_id;

-- name: upsert_addresses
-- One that a provider had dropped is believed again.
INSERT INTO address (project_id, user_id, channel, value)
SELECT $1, user_id, channel, value FROM unnest($2::text[], $3::smallint[], $4::text[]) AS x (user_id, channel, value)
ORDER BY user_id, channel, value
ON CONFLICT (project_id, user_id, channel, value) DO UPDATE SET dropped_at = NULL WHERE address.dropped_at IS NOT NULL
RETURNING user_id;

-- name: insert_topics
INSERT INTO topic (project_id, key) SELECT $1, key FROM unnest($2::text[]) AS x (key) ORDER BY key COLLATE "C"
ON CONFLICT DO NOTHING;

-- name: insert_members
INSERT INTO topic_member (project_id, topic_key, user_id)
SELECT $1, key, user_id FROM unnest($2::text[], $3::text[]) AS x (key, user_id)
ORDER BY key COLLATE "C", user_id COLLATE "C"
ON CONFLICT DO NOTHING
RETURNING user_id;
