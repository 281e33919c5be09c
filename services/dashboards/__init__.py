"""Grafana dashboards, made from the catalogue of metrics, so that none of them asks for what nobody tells."""
