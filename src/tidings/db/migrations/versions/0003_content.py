"""Content: options and attachments of requests, content-addressed blobs. (Statements in 0003_content.sql.)"""

from tidings.db.migrate import apply_script

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Applies the script."""
    apply_script(__file__)
