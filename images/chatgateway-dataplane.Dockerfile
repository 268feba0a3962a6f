# The data plane. Built by images/build.sh, which puts into this folder the static program and what it is made of.
FROM scratch
LABEL org.opencontainers.image.title="chatgateway-dataplane" \
      org.opencontainers.image.description="A chat edge for language models: WebSocket, gRPC, SSE and OpenAI-compatible API" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY chatgateway-dataplane /chatgateway-dataplane
COPY chatgateway-dataplane.cdx.json /sbom/chatgateway-dataplane.cdx.json
# A number, so that Kubernetes can tell that it is not root.
USER 65532:65532
EXPOSE 8080 9090 8081
ENTRYPOINT ["/chatgateway-dataplane"]
