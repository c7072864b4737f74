"""The spine: the tables that the whole road stands on (statements in 0001_spine.sql)."""

from tidings.db.migrate import apply_script

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Applies the script."""
    apply_script(__file__)
