# The simulator of a model server, for tests on a cluster. Built by images/build.sh.
FROM scratch
LABEL org.opencontainers.image.title="chatgateway-model-sim" \
      org.opencontainers.image.description="A simulator of a model server, for tests of ChatGateway" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY model-sim /model-sim
COPY model-sim.cdx.json /sbom/model-sim.cdx.json
USER 65532:65532
EXPOSE 8000
ENTRYPOINT ["/model-sim"]
CMD ["--listen", "0.0.0.0:8000"]
