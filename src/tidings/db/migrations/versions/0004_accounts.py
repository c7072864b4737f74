"""Accounts: usage, costs, quotas, health and learned pace. (Statements in 0004_accounts.sql.)"""

from tidings.db.migrate import apply_script

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Applies the script."""
    apply_script(__file__)
