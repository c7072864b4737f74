-- Hooks: signed status callbacks out, and the health of webhook endpoints.
SELECT 1;
