-- name: list_partitions
-- The daily partitions of the given tables: table, name, and whether a detach of it was interrupted.
-- any project: a partition holds a day of all projects.
SELECT parent.relname AS table_name, child.relname AS partition_name, link.inhdetachpending AS detaching
FROM pg_inherits AS link
JOIN pg_class AS parent ON parent.oid = link.inhparent
JOIN pg_class AS child ON child.oid = link.inhrelid
WHERE parent.oid = ANY (SELECT to_regclass(name) FROM unnest($1::text[]) AS name)
ORDER BY parent.relname, child.relname;

-- name: lock_partitions
-- One creator at a time; the others find the partitions there.
-- any project: a partition holds a day of all projects.
SELECT pg_advisory_xact_lock(8388066909073081346);

-- name: render_attach
-- The statements that make one partition: the table as such, then its attachment. In one go (CREATE ... PARTITION OF)
-- the parent would be locked against reading and writing; attaching an empty table lets both go on.
-- $1 table, $2 partition, $3 and $4 its bounds.
-- any project: a partition holds a day of all projects.
SELECT format(
    'CREATE TABLE %2$I (LIKE %1$I INCLUDING ALL); ALTER TABLE %1$I ATTACH PARTITION %2$I FOR VALUES FROM (%3$L) TO (%4$L)',
    $1::text, $2::text, $3::uuid, $4::uuid);

-- name: any_job
-- Whether a job points into a day: its id is that of a notification or a delivery, which lie in the day's range. Or an open
-- digest, whose items are notifications that have no job.
-- any project: a partition holds a day of all projects.
SELECT EXISTS (SELECT FROM job WHERE id >= $1 AND id < $2)
    OR EXISTS (SELECT FROM digest_item WHERE notification_id >= $1 AND notification_id < $2);
