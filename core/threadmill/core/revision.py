"""The revision of the tables that this code was written for."""

REVISION = "0006"
REVISION_TABLE = "revisions"
