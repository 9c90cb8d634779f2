"""The revision of the tables that this code was written for."""

REVISION = "0007"
REVISION_TABLE = "revisions"
