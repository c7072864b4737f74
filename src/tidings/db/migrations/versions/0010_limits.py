"""Limits: requests per API key, messages per project. (Statements in 0010_limits.sql.)"""

from tidings.db.migrate import apply_script

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Applies the script."""
    apply_script(__file__)
