"""docs/metrics.md, made from the catalogue: `python -m services.metric_page` writes it."""

from pathlib import Path

from services.metric_catalog import Family, families

PAGE = Path("docs/metrics.md")
_HEAD = """\
# Metrics

Made from the definitions by `python -m services.metric_page`; `services/metric_catalog.py` lists them for programs.

On each node that runs actors one exporter serves `http://HOST:9464/metrics` (settings section `metrics`) for all
processes of Headrace there: totals are sums over all processes, those that ended among them, so they never go down
while the node's Ray lives; gauges are of the living. The API's own `/metrics` gives the same text. Ages and delays
are reckoned at each scrape, and absent while there is nothing to reckon from. Series that name something (a model,
a phase, an arm) are shown while it is so.

No label holds an id of a user, an item, an event or a request: values of labels are fixed by the code, or as many as
the settings name topics and partitions, the API has routes, and operators have models and experiments.

"""


def page() -> str:
    """The whole page."""
    rows = ["| name | kind | labels | meaning | buckets |", "|---|---|---|---|---|", *map(_row, families())]
    return _HEAD + "\n".join(rows) + "\n"


def _row(family: Family) -> str:
    labels = ", ".join(f"`{label}`" for label in family.labels)
    buckets = ", ".join(f"{bound:g}" for bound in family.buckets)
    return f"| `{family.name}` | {family.kind} | {labels} | {family.help} | {buckets} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
