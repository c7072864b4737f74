"""Hooks: signed status callbacks out, and the health of webhook endpoints. (Statements in 0005_hooks.sql.)"""

from tidings.db.migrate import apply_script

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Applies the script."""
    apply_script(__file__)
