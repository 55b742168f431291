# Two stages: build with the toolchain, run with nothing but the binary and libc. `.dockerignore` says what comes in.
FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin leitstand
# The tree of the image, with owners and modes: the data directory is for the service alone.
RUN install -D target/release/leitstand /image/usr/local/bin/leitstand \
    && install -d -m 0700 -o 65532 -g 65532 /image/data

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /image/ /
# Inside a container the port must be reachable from outside of it; publish it on loopback.
ENV LEITSTAND_HOST=0.0.0.0 LEITSTAND_PORT=8788 LEITSTAND_DATA_DIR=/data
USER 65532:65532
WORKDIR /data
VOLUME /data
EXPOSE 8788
STOPSIGNAL SIGTERM
# The binary asks itself: the image has no shell and no curl.
HEALTHCHECK --interval=10s --timeout=6s --start-period=2s CMD ["/usr/local/bin/leitstand", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/leitstand"]
CMD ["serve"]
# docker run --read-only --cap-drop ALL --security-opt no-new-privileges --pids-limit 256 \
#   -p 127.0.0.1:8788:8788 -v leitstand-data:/data -e LEITSTAND_TOKEN_FILE=/run/secrets/token … leitstand
