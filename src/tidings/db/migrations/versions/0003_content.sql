-- Content: options and attachments of requests, content-addressed blobs.
SELECT 1;
