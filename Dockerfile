# docker build -t discern .
# docker run --rm --read-only --tmpfs /tmp --user "$(id -u):$(id -g)" -v "$PWD:/data" discern process parameters.json
FROM python:3.12-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY discern discern
RUN python -m venv /opt/discern && /opt/discern/bin/pip install --no-cache-dir .

FROM python:3.12-slim
LABEL org.opencontainers.image.title="DISCERN" \
      org.opencontainers.image.version="2.0.0" \
      org.opencontainers.image.licenses="MIT"
COPY --from=build /opt/discern /opt/discern
# Any user, and nothing written but to /data and /tmp: the caches of the libraries would otherwise go to HOME and beside their code.
ENV PATH=/opt/discern/bin:$PATH \
    USER=discern \
    HOME=/tmp \
    XDG_CACHE_HOME=/tmp/cache \
    MPLCONFIGDIR=/tmp/matplotlib \
    NUMBA_CACHE_DIR=/tmp/numba \
    MPLBACKEND=Agg \
    TF_CPP_MIN_LOG_LEVEL=2
USER 1000:1000
WORKDIR /data
ENTRYPOINT ["discern"]
CMD ["--help"]
