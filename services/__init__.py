"""Composes the packages below and faces the user: settings, command line, applications, demo."""
