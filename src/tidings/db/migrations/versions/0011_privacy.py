"""Privacy: erasing users, and finding what names them. (Statements in 0011_privacy.sql.)"""

from tidings.db.migrate import apply_script

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Applies the script."""
    apply_script(__file__)
