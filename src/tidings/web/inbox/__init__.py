"""/api/v1/inbox: what a user sees of their own inbox: lists, marks, and live streams; with a user token, not a key."""
