"""Receipts and tracking: what vendors and recipients report. (Statements in 0002_receipts.sql.)"""

from tidings.db.migrate import apply_script

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Applies the script."""
    apply_script(__file__)
