"""Settings of how metrics are served."""

from pydantic import Field

from streaming.config import Section


class MetricsSettings(Section):
    """The exporter of each node, which Prometheus scrapes for all processes there."""

    enabled: bool = Field(True, description="serve metrics of all processes at http://HOST:PORT/metrics")
    host: str = Field(
        "127.0.0.1", min_length=1, description="address to listen at; 0.0.0.0: all of the machine's"
    )
    port: int = Field(9464, ge=0, le=65_535, description="0: any free one, which GET /v1/stats names")
