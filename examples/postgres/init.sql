-- Run by psql, once, on the new database.
create role proxy login replication password 'proxy';

-- PostgreSQL 15.19, 16.15, 17.11, 18.6 and later load only the output plugins named here, and for other roles than
-- superusers only those that this setting names.
select 'alter role proxy set output_plugin_libraries = pgoutput, wal2json'
  from pg_settings where name = 'output_plugin_libraries' \gexec

create table items (id bigint generated always as identity primary key, name text not null, price numeric);
