"""Command-line flags by topic, and how every command starts and ends; nothing is measured here.

The package `instcls_tf` never reads flags itself.
"""
