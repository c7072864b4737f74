-- name: insert_inbound
-- A vendor repeats itself; the id is made of what it says.
INSERT INTO inbound_message (id, project_id, account_id, channel, sender, recipient, body, keyword, provider_id, at)
SELECT id, project_id, account_id, channel, sender, recipient, body, keyword, provider_id, coalesce($10::timestamptz, now())
FROM unnest($1::uuid[], $2::int[], $3::int[], $4::smallint[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[])
     AS x (id, project_id, account_id, channel, sender, recipient, body, keyword, provider_id)
ON CONFLICT DO NOTHING
RETURNING id;

-- name: lift_opt_outs
-- START takes back what STOP said to the same sender, and nothing else.
DELETE FROM suppression s USING unnest($1::int[], $2::smallint[], $3::text[], $4::text[])
    AS x (project_id, channel, address, stream)
WHERE s.project_id = x.project_id AND s.channel = x.channel AND s.address = x.address AND s.stream = x.stream
  AND s.project_id = ANY ($1) AND s.address = ANY ($3);  -- see lock_cancelled

-- name: forget_inbound
-- What somebody wrote; a STOP or START is kept for longer, as the evidence of why they are told or not.
-- any project: housekeeping
WITH gone AS (
    DELETE FROM inbound_message WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM inbound_message
        WHERE at < $1 AND coalesce(keyword, 'help') = 'help' LIMIT $2 FOR UPDATE SKIP LOCKED))
    RETURNING 1
)
SELECT count(*)::int FROM gone;
