"""Alembic's entry: runs the migrations on the connection that `threadmill.core.migrate` hands over."""

from alembic import context

from threadmill.core.models import SCHEMA, Base
from threadmill.core.revision import REVISION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    version_table=REVISION_TABLE,
    version_table_schema=SCHEMA,
    include_schemas=True,
    # LangGraph's tables live in the same schema and are its own to migrate.
    include_name=lambda name, kind, _parents: name == SCHEMA if kind == "schema" else True,
    include_object=lambda _item, _name, kind, reflected, compare_to: (
        not (kind == "table" and reflected and compare_to is None)
    ),
    compare_type=True,
    compare_server_default=True,
)
with context.begin_transaction():
    context.run_migrations()
