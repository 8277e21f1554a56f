# The image holds the executable, the five shared objects of the C library that it is linked with, the certificate
# authorities and /etc/nsswitch.conf, and nothing else: no shell, no package manager, no user but a number.
#
#   docker build -t pg-event-proxy .
#
# Any base with apt, Node.js and npm will do for the build; without a registry name one with --build-arg BUILD_IMAGE=…,
# or leave the stage out with a folder in its place: --build-context build=FOLDER, in which scripts/image_root has laid
# out FOLDER/image.
ARG BUILD_IMAGE=docker.io/library/node:24-bookworm-slim

FROM ${BUILD_IMAGE} AS build
RUN apt-get update \
  && apt-get install -y --no-install-recommends ca-certificates git \
  && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY . .
RUN scripts/build && scripts/image_root dist/pg-event-proxy /image

FROM scratch
ARG VERSION=unknown
ARG COMMIT=unknown
LABEL org.opencontainers.image.title="pg-event-proxy" \
  org.opencontainers.image.description="Carries PostgreSQL NOTIFY messages and row changes to RabbitMQ, MQTT, Redis" \
  org.opencontainers.image.licenses="MIT" \
  org.opencontainers.image.version="${VERSION}" \
  org.opencontainers.image.revision="${COMMIT}"
COPY --from=build /image /
# A number, so that Kubernetes can see that it is not root.
USER 65532:65532
# Health, metrics and the status page, for this container alone: 0.0.0.0:8080 opens them to others.
ENV PGPROXY_HTTP-LISTEN=127.0.0.1:8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s CMD ["/pg-event-proxy", "health"]
# A clean stop: it drains, and redelivers nothing at the next start.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/pg-event-proxy"]
