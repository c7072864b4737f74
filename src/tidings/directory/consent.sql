-- name: record
-- The ids are UUIDv7 by the database's clock (RFC 9562, section 5.7). The digits after the version count, so that what
-- was decided together stays in its order.
INSERT INTO consent (id, project_id, user_id, channel, address, category_key, type_key, decision, actor, source,
                     wording, ip, user_agent, api_key_id, at)
SELECT (lpad(to_hex((extract(epoch FROM moment.at) * 1000)::bigint), 12, '0')
            || '7' || lpad(to_hex(x.number & 4095), 3, '0')
            || substr(replace(gen_random_uuid()::text, '-', ''), 17))::uuid,
       $1, x.user_id, x.channel, x.address, x.category_key, x.type_key, x.decision, $8, $9, $10, $11, $12, $13::uuid,
       moment.at
FROM (SELECT clock_timestamp() AS at OFFSET 0) AS moment,
     unnest($2::text[], $3::smallint[], $4::text[], $5::text[], $6::text[], $7::text[]) WITH ORDINALITY
         AS x (user_id, channel, address, category_key, type_key, decision, number);

-- name: list_consents
SELECT id, at, user_id, channel, address, category_key, type_key, decision, actor, source, wording, ip, user_agent,
       api_key_id
FROM consent
WHERE project_id = $1 AND user_id = $2 AND ($3::uuid IS NULL OR id < $3)
ORDER BY id DESC
LIMIT $4;

-- name: delete_consents
-- Whoever is erased leaves no decisions behind either.
DELETE FROM consent WHERE project_id = $1 AND user_id = $2;
