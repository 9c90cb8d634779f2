#!/bin/sh
# Run by the Postgres image once, when its volume is empty. The role that workers and producers log in as is
# a member of the fleet's role and nothing more; the migrations find that role made and grant it its rights.
set -eu

psql --no-psqlrc --set=ON_ERROR_STOP=1 --set=password="$POSTGRES_APP_PASSWORD" \
    --username="$POSTGRES_USER" --dbname="$POSTGRES_DB" <<'SQL'
create role threadmill_fleet nologin nosuperuser nobypassrls;
create role threadmill_app login password :'password' in role threadmill_fleet;
SQL
