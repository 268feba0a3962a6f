# The operator. Built by images/build.sh, which puts into this folder the static program and what it is made of.
FROM scratch
LABEL org.opencontainers.image.title="chatgateway-operator" \
      org.opencontainers.image.description="Looks after the ChatGateways of a Kubernetes cluster" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY chatgateway-operator /chatgateway-operator
COPY chatgateway-operator.cdx.json /sbom/chatgateway-operator.cdx.json
# A number, so that Kubernetes can tell that it is not root.
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/chatgateway-operator"]
CMD ["run"]
