"""Audiences: topics, segments, broadcasts, event rules. (Statements in 0009_audiences.sql.)"""

from tidings.db.migrate import apply_script

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Applies the script."""
    apply_script(__file__)
