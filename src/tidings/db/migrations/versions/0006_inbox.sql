-- Inbox: actions, read state and live streams.
SELECT 1;
