"""Command-line flags by topic, and how every command starts. The package `instcls_tf` never reads flags itself."""
