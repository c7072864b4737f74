"""Inbox: actions, read state and live streams. (Statements in 0006_inbox.sql.)"""

from tidings.db.migrate import apply_script

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Applies the script."""
    apply_script(__file__)
