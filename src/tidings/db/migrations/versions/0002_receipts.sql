-- Receipts and tracking: what vendors and recipients report; suppression by stream.
SELECT 1;
