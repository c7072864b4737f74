"""Choices: preferences, consent, quiet hours, engagement. (Statements in 0007_choices.sql.)"""

from tidings.db.migrate import apply_script

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Applies the script."""
    apply_script(__file__)
