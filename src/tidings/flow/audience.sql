-- name: list_zones
-- The time zones of a project's users, '' for those without one: a skip scan, a step for each zone.
WITH RECURSIVE zone AS (
    (SELECT coalesce(u.time_zone, '') AS name FROM app_user u
     WHERE u.project_id + 0 = $1 ORDER BY coalesce(u.time_zone, '') LIMIT 1)  -- + 0: as the index is made
    UNION ALL
    SELECT n.name
    FROM zone z CROSS JOIN LATERAL (
        SELECT coalesce(u.time_zone, '') AS name FROM app_user u
        WHERE u.project_id + 0 = $1 AND coalesce(u.time_zone, '') > z.name
        ORDER BY coalesce(u.time_zone, '') LIMIT 1) n
)
SELECT name FROM zone;

-- name: list_matching_topics
-- The topics of a pattern, at most $5: see tidings.model.topics.
SELECT key FROM topic
WHERE project_id = $1 AND key >= $2 AND key < $3 AND (key = $2 OR key >= $4)
ORDER BY key LIMIT $5;

-- The blocks from here on are parts of statements about the user `u`: the words in braces stand for other parts and for
-- segments' conditions. All of them have in common $1 the project, $2 time zones (NULL: all), $3 users that are left out,
-- $4 to $6 the topics (low, high, below) whose users are left out. $7 to $9 are for those whom no time zone's cohort
-- will have told: the zones that had one (NULL: this is not about them), since when, and the key that who was told has.

-- name: wanted
-- In the right time zone and not left out. A list of users is looked up as a hash table, which `= ANY` is not; but of
-- NOT EXISTS a hash table might be made, too, of all that a project has there: LIMIT 1 keeps it to a look for each user.
-- any project: part of a statement
    ($2::text[] IS NULL OR coalesce(u.time_zone, '') = ANY ($2))
    AND (cardinality($3::text[]) = 0 OR u.id NOT IN (SELECT x FROM unnest($3::text[]) AS x (x)))
    AND (cardinality($4::text[]) = 0 OR (
        SELECT true FROM topic_member m CROSS JOIN unnest($4::text[], $5::text[], $6::text[]) AS r (low, high, below)
        WHERE m.project_id = $1 AND m.user_id = u.id COLLATE "C"
          AND m.topic_key >= r.low AND m.topic_key < r.high AND (m.topic_key = r.low OR m.topic_key >= r.below)
        LIMIT 1) IS NULL)
    AND ($7::text[] IS NULL OR (
        (coalesce(u.time_zone, '') <> ALL ($7) OR u.updated_at >= $8::timestamptz)
        AND (
            SELECT true FROM send_once s
            WHERE s.project_id = $1 AND s.target = 'u:' || u.id AND s.key = $9::text LIMIT 1) IS NULL))
    AND ({excluded}) IS NOT TRUE

-- name: meant
-- In one of the sources, for whoever comes from a walk through all users: $10 all are, $11 users, $12 to $14 topics.
-- any project: part of a statement
    ($10::bool
     OR (cardinality($11::text[]) > 0 AND u.id IN (SELECT x FROM unnest($11::text[]) AS x (x)))
     OR (cardinality($12::text[]) > 0 AND (
        SELECT true FROM topic_member m CROSS JOIN unnest($12::text[], $13::text[], $14::text[]) AS r (low, high, below)
        WHERE m.project_id = $1 AND m.user_id = u.id COLLATE "C"
          AND m.topic_key >= r.low AND m.topic_key < r.high AND (m.topic_key = r.low OR m.topic_key >= r.below)
        LIMIT 1))
     OR {included})

-- name: page_named
-- The next users among those named in $10 and those in the topics $11: after $12, at most $14 of the next $13 that come
-- into question. Each source gives its first $13, so the first $13 of them together are among these. Answers with the
-- users, how many came into question, and the last of those.
WITH candidate AS MATERIALIZED (
    SELECT c.id FROM (
        SELECT x.id COLLATE "C" AS id FROM unnest($10::text[]) AS x (id) WHERE x.id COLLATE "C" > $12::text
        UNION
        SELECT m.user_id FROM unnest($11::text[]) AS t (key) CROSS JOIN LATERAL (
            SELECT m.user_id FROM topic_member m
            WHERE m.project_id = $1 AND m.topic_key = t.key COLLATE "C" AND m.user_id > $12::text
            ORDER BY m.user_id LIMIT $13) m
    ) c ORDER BY c.id LIMIT $13
), chosen AS MATERIALIZED (
    SELECT c.id
    FROM candidate c CROSS JOIN LATERAL (
        SELECT * FROM app_user u WHERE u.project_id = $1 AND u.id = c.id OFFSET 0) u
    WHERE {wanted}
    ORDER BY c.id LIMIT $14
)
SELECT ARRAY(SELECT id FROM chosen ORDER BY id) AS ids, (SELECT count(*) FROM candidate)::int AS looked_at,
       (SELECT max(id) FROM candidate) AS last;

-- name: page_all
-- The same, walking through the project's users: after $15, at most $17 of the next $16. The walk stops at the last of
-- them; only where there are fewer is the rest looked at once more, to say where it ended.
WITH chosen AS MATERIALIZED (
    SELECT u.id COLLATE "C" AS id
    FROM (
        SELECT * FROM app_user u
        WHERE u.project_id = $1 AND u.id COLLATE "C" > $15::text
        ORDER BY u.id COLLATE "C" LIMIT $16) u
    WHERE {meant} AND {wanted}
    ORDER BY u.id COLLATE "C" LIMIT $17
)
SELECT c.ids, w.looked_at, w.last
FROM (SELECT ARRAY(SELECT id FROM chosen) AS ids) c
CROSS JOIN LATERAL (
    SELECT count(*)::int AS looked_at, max(id) AS last FROM (
        SELECT u.id COLLATE "C" AS id FROM app_user u
        WHERE u.project_id = $1 AND u.id COLLATE "C" > $15::text
        ORDER BY u.id COLLATE "C" LIMIT CASE WHEN cardinality(c.ids) < $17 THEN $16 ELSE 0 END) w
) w;

-- name: page_zone
-- The same, walking through the users of the time zone $18.
WITH chosen AS MATERIALIZED (
    SELECT u.id COLLATE "C" AS id
    FROM (
        SELECT * FROM app_user u
        WHERE u.project_id + 0 = $1 AND coalesce(u.time_zone, '') = $18::text AND u.id COLLATE "C" > $15::text
        ORDER BY u.id COLLATE "C" LIMIT $16) u
    WHERE {meant} AND {wanted}
    ORDER BY u.id COLLATE "C" LIMIT $17
)
SELECT c.ids, w.looked_at, w.last
FROM (SELECT ARRAY(SELECT id FROM chosen) AS ids) c
CROSS JOIN LATERAL (
    SELECT count(*)::int AS looked_at, max(id) AS last FROM (
        SELECT u.id COLLATE "C" AS id FROM app_user u
        WHERE u.project_id + 0 = $1 AND coalesce(u.time_zone, '') = $18::text AND u.id COLLATE "C" > $15::text
        ORDER BY u.id COLLATE "C" LIMIT CASE WHEN cardinality(c.ids) < $17 THEN $16 ELSE 0 END) w
) w;

-- name: count_named
-- How many there are of page_named, and $12 of them: always the same ones, in no order.
WITH candidate AS MATERIALIZED (
    SELECT x.id COLLATE "C" AS id FROM unnest($10::text[]) AS x (id)
    UNION
    SELECT m.user_id FROM unnest($11::text[]) AS t (key) CROSS JOIN LATERAL (
        SELECT m.user_id FROM topic_member m WHERE m.project_id = $1 AND m.topic_key = t.key COLLATE "C" OFFSET 0) m
), chosen AS MATERIALIZED (
    SELECT c.id
    FROM candidate c CROSS JOIN LATERAL (
        SELECT * FROM app_user u WHERE u.project_id = $1 AND u.id = c.id OFFSET 0) u
    WHERE {wanted}
)
SELECT (SELECT count(*) FROM chosen) AS count,
       ARRAY(SELECT id FROM chosen ORDER BY hashtextextended(id, 0) LIMIT $12) AS sample;

-- name: count_all
-- How many there are of page_all, and $15 of them.
WITH chosen AS MATERIALIZED (
    SELECT u.id FROM app_user u WHERE u.project_id = $1 AND {meant} AND {wanted}
)
SELECT (SELECT count(*) FROM chosen) AS count,
       ARRAY(SELECT id FROM chosen ORDER BY hashtextextended(id, 0) LIMIT $15) AS sample;
