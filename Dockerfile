# The side service: docker build -t moescope:0.1.0 .
# It listens beyond loopback, so it starts with a token only: docker run -e MOESCOPE_TOKEN=... -v moescope:/data ...
FROM python:3.12.11-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY capture capture
COPY client client
COPY service service
COPY dashboards dashboards
RUN pip wheel --no-cache-dir --wheel-dir /wheels '.[service,clickhouse]'
# What vLLM needs of moescope, without what vLLM has: for an init container that copies it (docs/kubernetes.md).
RUN pip install --no-cache-dir --no-deps --no-compile --target /plugin .

FROM python:3.12.11-slim-bookworm
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-index --find-links /wheels 'moescope[service,clickhouse]' \
    && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin moescope \
    && install -d -o moescope -g moescope /data
COPY --from=build /plugin /opt/moescope-plugin
USER 10001:10001
# Whatever the arguments: without a volume here, counts end with the container. MOESCOPE_STORE=none keeps none.
ENV MOESCOPE_STORE=/data
VOLUME /data
EXPOSE 9890
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:9890/readyz', timeout=2)"]
ENTRYPOINT ["moescope"]
CMD ["serve", "--host", "0.0.0.0"]
