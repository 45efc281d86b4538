"""The platform's database: engine, tables, migrations. Nothing but `platform` imports it."""
