-- name: create_topic
-- No row: there is one with this key.
INSERT INTO topic (project_id, key, name) VALUES ($1, $2, $3)
ON CONFLICT DO NOTHING
RETURNING key, name, created_at, updated_at;

-- name: lock_topic
SELECT key, name, created_at, updated_at FROM topic WHERE project_id = $1 AND key = $2 FOR UPDATE;

-- name: hold_topic
-- It is not deleted while we add members to it; others may do so at the same time.
SELECT true FROM topic WHERE project_id = $1 AND key = $2 FOR KEY SHARE;

-- name: update_topic
UPDATE topic SET name = $3, updated_at = now() WHERE project_id = $1 AND key = $2
RETURNING key, name, created_at, updated_at;

-- name: load_topic
SELECT key, name, created_at, updated_at FROM topic WHERE project_id = $1 AND key = $2;

-- name: list_topics
-- Those of a range; see tidings.model.topics.
SELECT key, name, created_at, updated_at FROM topic
WHERE project_id = $1 AND key >= $2 AND key < $3 AND (key = $2 OR key >= $4) AND ($5::text IS NULL OR key > $5)
ORDER BY key
LIMIT $6;

-- name: delete_topic
-- Its members go with it.
DELETE FROM topic WHERE project_id = $1 AND key = $2 RETURNING key;

-- name: hold_users
-- Which of these are users. They are not deleted before we are done: who deletes them finds the memberships.
SELECT id FROM app_user
WHERE project_id = $1 AND id = ANY ($2::text[])
ORDER BY id
FOR KEY SHARE;

-- name: apply_members
INSERT INTO topic_member (project_id, topic_key, user_id)
SELECT $1, $2, id FROM unnest($3::text[]) AS given (id) ORDER BY id COLLATE "C"
ON CONFLICT DO NOTHING
RETURNING user_id;

-- name: delete_members
DELETE FROM topic_member WHERE project_id = $1 AND topic_key = $2 AND user_id = ANY ($3::text[])
RETURNING user_id;

-- name: list_members
SELECT user_id, created_at FROM topic_member
WHERE project_id = $1 AND topic_key = $2 AND ($3::text IS NULL OR user_id > $3)
ORDER BY user_id
LIMIT $4;

-- name: list_topics_of
SELECT topic_key, created_at FROM topic_member
WHERE project_id = $1 AND user_id = $2 AND ($3::text IS NULL OR topic_key > $3)
ORDER BY topic_key
LIMIT $4;

-- name: leave_topics
DELETE FROM topic_member WHERE project_id = $1 AND user_id = $2;
