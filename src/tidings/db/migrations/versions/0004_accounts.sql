-- Accounts: usage, costs, quotas, health and learned pace.
SELECT 1;
