-- name: claim_idempotency
-- A row says that the key is ours: it is new, or its time is over. No row: another request has it. Waits for one that
-- is still in its transaction. Status 0 stands only inside that transaction.
INSERT INTO idempotency AS kept (project_id, key, fingerprint, status, answer, expires_at)
VALUES ($1, $2, $3, 0, 'null', now() + $4::interval)
ON CONFLICT (project_id, key) DO UPDATE
    SET fingerprint = excluded.fingerprint, status = 0, answer = excluded.answer, expires_at = excluded.expires_at
    WHERE kept.expires_at <= now()
RETURNING true;

-- name: load_idempotency
SELECT fingerprint, status, answer FROM idempotency WHERE project_id = $1 AND key = $2;

-- name: apply_idempotency
UPDATE idempotency SET status = $3, answer = $4::json WHERE project_id = $1 AND key = $2;
