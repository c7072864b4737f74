"""Runs: steps and timers, digests, caps, send-once keys. (Statements in 0008_runs.sql.)"""

from tidings.db.migrate import apply_script

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Applies the script."""
    apply_script(__file__)
