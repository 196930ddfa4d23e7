# The image of the API and of the workers. Your modules go into /app, by `FROM jobledger` and `COPY`, or by a mount.
# All but the end is the same as in scheduler.Dockerfile, so the two share their layers.
FROM python:3.12.13-slim-bookworm AS python
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1

FROM python AS build
WORKDIR /build
RUN python -m venv /opt/jobledger
# What changes least goes first: a change of the code installs nothing again.
COPY requirements.txt ./
RUN /opt/jobledger/bin/pip install --only-binary :all: --requirement requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY migrations ./migrations
COPY src ./src
RUN /opt/jobledger/bin/pip wheel --no-deps --wheel-dir dist . && \
    /opt/jobledger/bin/pip install --no-deps dist/*.whl && \
    /opt/jobledger/bin/pip check

FROM python AS runtime
# Its home is what it may write to when all else is read-only.
RUN groupadd --gid 10001 jobledger && \
    useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin jobledger && \
    mkdir /app /data
COPY --from=build /opt/jobledger /opt/jobledger
# /app is on the path for every command, not only for those that start there.
ENV PATH=/opt/jobledger/bin:$PATH \
    PYTHONPATH=/app
WORKDIR /app
# By number, so that a platform can see that it is not root.
USER 10001:10001
STOPSIGNAL SIGTERM
LABEL org.opencontainers.image.title="jobledger" \
      org.opencontainers.image.description="Background jobs on Redis Queue, with a ledger in Postgres." \
      org.opencontainers.image.licenses="MIT"

EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 CMD ["python", "-m", "jobledger", "health", "api"]
CMD ["python", "-m", "jobledger", "api", "--host", "0.0.0.0"]
