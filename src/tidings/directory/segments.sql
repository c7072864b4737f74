-- Conditions in SQL: the pieces that `to_where` puts together, and the statements that they are put into.
--
-- A piece's names in parentheses stand for parameters such as $7, and for other pieces; nothing that a caller wrote is
-- ever part of a text. `u` is the user. A piece may be NULL where the user has no such value, which counts as false:
-- `is_not_so` makes that sure, and AND, OR and WHERE do by themselves.

-- name: is_attribute
-- any project: a piece; the statement around it binds the project. What is no object has nothing by a name.
(u.attributes%(path)s)

-- name: is_same
-- any project: a piece; the statement around it binds the project.
jsonb_typeof(%(value)s) = %(kind)s::text AND %(value)s = %(given)s::jsonb

-- name: is_other
-- any project: a piece; the statement around it binds the project.
jsonb_typeof(%(value)s) = %(kind)s::text AND %(value)s <> %(given)s::jsonb

-- name: is_among
-- any project: a piece; the statement around it binds the project.
jsonb_typeof(%(value)s) = %(kind)s::text AND %(given)s::jsonb @> %(value)s

-- name: is_not_among
-- any project: a piece; the statement around it binds the project.
jsonb_typeof(%(value)s) = %(kind)s::text AND NOT %(given)s::jsonb @> %(value)s

-- name: is_above
-- any project: a piece; the statement around it binds the project.
jsonb_typeof(%(value)s) = 'number' AND %(value)s > %(given)s::jsonb

-- name: is_at_least
-- any project: a piece; the statement around it binds the project.
jsonb_typeof(%(value)s) = 'number' AND %(value)s >= %(given)s::jsonb

-- name: is_below
-- any project: a piece; the statement around it binds the project.
jsonb_typeof(%(value)s) = 'number' AND %(value)s < %(given)s::jsonb

-- name: is_at_most
-- any project: a piece; the statement around it binds the project.
jsonb_typeof(%(value)s) = 'number' AND %(value)s <= %(given)s::jsonb

-- name: holds_text
-- any project: a piece; the statement around it binds the project. In a list, or in a text.
CASE jsonb_typeof(%(value)s)
    WHEN 'array' THEN %(value)s @> to_jsonb(%(given)s::text)
    WHEN 'string' THEN strpos((%(value)s #>> '{}') COLLATE "C", %(given)s::text) > 0
END

-- name: holds_value
-- any project: a piece; the statement around it binds the project.
jsonb_typeof(%(value)s) = 'array' AND %(value)s @> %(given)s::jsonb

-- name: begins_with
-- any project: a piece; the statement around it binds the project.
jsonb_typeof(%(value)s) = 'string' AND starts_with(%(value)s #>> '{}', %(given)s::text)

-- name: is_there
-- any project: a piece; the statement around it binds the project.
coalesce(jsonb_typeof(%(value)s), 'null') <> 'null'

-- name: is_before
-- any project: a piece; the statement around it binds the project. What matches the pattern is read without an error.
CASE WHEN jsonb_typeof(%(value)s) = 'string' AND %(value)s #>> '{}' ~ %(pattern)s::text
    THEN (%(value)s #>> '{}')::timestamptz < %(limit)s END

-- name: is_after
-- any project: a piece; the statement around it binds the project.
CASE WHEN jsonb_typeof(%(value)s) = 'string' AND %(value)s #>> '{}' ~ %(pattern)s::text
    THEN (%(value)s #>> '{}')::timestamptz > %(limit)s END

-- name: now_and
-- any project: a piece; the statement around it binds the project.
(coalesce(%(now)s::timestamptz, now()) + %(offset)s::interval)

-- name: text_is
-- any project: a piece; the statement around it binds the project. A column, not an attribute; so are those that follow.
%(column)s = %(given)s::text

-- name: text_is_not
-- any project: a piece; the statement around it binds the project.
%(column)s <> %(given)s::text

-- name: text_in
-- any project: a piece; the statement around it binds the project.
%(column)s = ANY (%(given)s::text[])

-- name: text_not_in
-- any project: a piece; the statement around it binds the project.
%(column)s <> ALL (%(given)s::text[])

-- name: text_contains
-- any project: a piece; the statement around it binds the project.
strpos(%(column)s COLLATE "C", %(given)s::text) > 0

-- name: text_begins_with
-- any project: a piece; the statement around it binds the project.
starts_with(%(column)s, %(given)s::text)

-- name: text_is_there
-- any project: a piece; the statement around it binds the project.
%(column)s IS NOT NULL

-- name: time_before
-- any project: a piece; the statement around it binds the project.
%(column)s < %(limit)s

-- name: time_after
-- any project: a piece; the statement around it binds the project.
%(column)s > %(limit)s

-- name: was_active
-- `last` is one of the two columns; no channel means any, no duration means ever. `fence`: see `to_where`.
EXISTS (
    SELECT FROM user_engagement AS e
    WHERE e.project_id = u.project_id AND e.user_id = u.id
      AND (%(channel)s::smallint IS NULL OR e.channel = %(channel)s)
      AND %(last)s >= coalesce(coalesce(%(now)s::timestamptz, now()) - %(within)s::interval, '-infinity')
    %(fence)s
)

-- name: said_of_category
-- any project: a piece; the statement around it binds the project. What they said themselves; NULL when nothing.
CASE
    WHEN u.preferences -> 'muted' = 'true' AND NOT coalesce(
        CASE WHEN jsonb_typeof(u.preferences -> 'muted_until') = 'string'
            AND u.preferences ->> 'muted_until' ~ %(pattern)s::text
            THEN (u.preferences ->> 'muted_until')::timestamptz <= coalesce(%(now)s::timestamptz, now()) END, false)
        THEN false
    WHEN u.preferences -> 'categories' -> %(category)s::text -> 'channels' -> %(channel)s::text = 'false' THEN false
    WHEN u.preferences -> 'categories' -> %(category)s::text -> 'channels' -> %(channel)s::text = 'true' THEN true
    WHEN u.preferences -> 'categories' -> %(category)s::text -> 'enabled' = 'false' THEN false
    WHEN u.preferences -> 'channels' -> %(channel)s::text = 'false' THEN false
    WHEN u.preferences -> 'categories' -> %(category)s::text -> 'enabled' = 'true' THEN true
    WHEN u.preferences -> 'channels' -> %(channel)s::text = 'true' THEN true
END = %(on)s::boolean

-- name: in_topic
-- See tidings.model.topics for the range.
EXISTS (
    SELECT FROM topic_member AS m
    WHERE m.project_id = u.project_id AND m.user_id = u.id COLLATE "C"
      AND m.topic_key >= %(low)s::text AND m.topic_key < %(high)s::text
      AND (m.topic_key = %(low)s OR m.topic_key >= %(below)s::text)
    %(fence)s
)

-- name: is_not_so
-- any project: a piece; the statement around it binds the project.
(%(inner)s) IS NOT TRUE

-- name: count_members
SELECT count(*) FROM app_user AS u WHERE u.project_id = $1 AND (%(where)s);

-- name: list_members
SELECT u.id FROM app_user AS u
WHERE u.project_id = $1 AND u.id COLLATE "C" > $2 AND (%(where)s)
ORDER BY u.id COLLATE "C"
LIMIT $3;

-- name: refresh_members
-- The next users by id, with the bits of the segments that they are in; rows whose bits stay are not written.
WITH member AS MATERIALIZED (
    SELECT u.id, u.segments AS before, %(bits)s AS bits
    FROM app_user AS u
    WHERE u.project_id = $1 AND u.id COLLATE "C" > $2
    ORDER BY u.id COLLATE "C"
    LIMIT $3
), written AS (
    UPDATE app_user SET segments = member.bits
    FROM member
    WHERE app_user.project_id = $1 AND app_user.id = member.id AND member.bits <> member.before
)
SELECT bits, count(*) AS users, max(id COLLATE "C") AS last FROM member GROUP BY bits;

-- name: is_bit
-- any project: a piece; the statement around it binds the project.
CASE WHEN %(where)s THEN 1::bigint << %(slot)s::integer ELSE 0 END

-- name: list_projects_to_refresh
-- any project: the chore that asks does its work in one project after the other.
SELECT project_id FROM segment
WHERE slot IS NOT NULL AND (counted_at IS NULL OR counted_at < coalesce($1::timestamptz, now()) - $2::interval)
UNION
SELECT project_id FROM segment_slot
ORDER BY project_id;

-- name: hold_tracked
-- They stay as they are until we have written the bits.
SELECT key, condition, slot, updated_at FROM segment
WHERE project_id = $1 AND slot IS NOT NULL
ORDER BY slot
FOR SHARE;

-- name: list_given_up
SELECT slot, given_up_at FROM segment_slot WHERE project_id = $1;

-- name: forget_given_up
-- But not one that was given up again since we looked.
DELETE FROM segment_slot AS s
USING unnest($2::smallint[], $3::timestamptz[]) AS cleared (slot, given_up_at)
WHERE s.project_id = $1 AND s.slot = cleared.slot AND s.given_up_at = cleared.given_up_at;

-- name: give_up_slot
INSERT INTO segment_slot (project_id, slot) VALUES ($1, $2)
ON CONFLICT (project_id, slot) DO UPDATE SET given_up_at = clock_timestamp();

-- name: apply_counts
-- A segment that changed while we counted waits for the next time.
UPDATE segment AS s SET counted = given.n, counted_at = coalesce($5::timestamptz, now())
FROM unnest($2::text[], $3::timestamptz[], $4::bigint[]) AS given (key, updated_at, n)
WHERE s.project_id = $1 AND s.key = given.key AND s.updated_at = given.updated_at;

-- name: lock_slots
-- any project: it is the project's own row. Slots are given out one after the other.
SELECT true FROM project WHERE id = $1 FOR NO KEY UPDATE;

-- name: find_free_slot
-- No row: all are taken, or their users are still to be told that they are not in them any more.
SELECT free::smallint FROM generate_series(0, 49) AS free
WHERE NOT EXISTS (SELECT FROM segment WHERE project_id = $1 AND slot = free)
  AND NOT EXISTS (SELECT FROM segment_slot WHERE project_id = $1 AND slot = free)
ORDER BY free
LIMIT 1;

-- name: create_segment
-- No row: there is one with this key.
INSERT INTO segment (project_id, key, name, condition) VALUES ($1, $2, $3, $4::jsonb)
ON CONFLICT DO NOTHING
RETURNING key, name, condition, slot, counted, counted_at, created_at, updated_at;

-- name: lock_segment
SELECT key, name, condition, slot, counted, counted_at, created_at, updated_at
FROM segment WHERE project_id = $1 AND key = $2
FOR UPDATE;

-- name: update_segment
-- What was counted is no more, when the condition is another one.
UPDATE segment SET name = $3, condition = $4::jsonb, slot = $5::smallint, updated_at = clock_timestamp(),
    counted = CASE WHEN condition = $4::jsonb AND slot = $5::smallint THEN counted END,
    counted_at = CASE WHEN condition = $4::jsonb AND slot = $5::smallint THEN counted_at END
WHERE project_id = $1 AND key = $2
RETURNING key, name, condition, slot, counted, counted_at, created_at, updated_at;

-- name: load_segment
SELECT key, name, condition, slot, counted, counted_at, created_at, updated_at
FROM segment WHERE project_id = $1 AND key = $2;

-- name: list_segments
SELECT key, name, condition, slot, counted, counted_at, created_at, updated_at
FROM segment
WHERE project_id = $1 AND ($2::text IS NULL OR key > $2)
ORDER BY key
LIMIT $3;

-- name: delete_segment
DELETE FROM segment WHERE project_id = $1 AND key = $2 RETURNING key;
