# Built only when pins.toml names an image of a registry (base.registry), and then
# only for its files: the result is exported, normalised and made the base layer,
# so that this build's times and ids matter nothing. An image that already holds
# the packages needs no network.
ARG BASE
FROM ${BASE}
ARG PACKAGES
USER 0
RUN set -eu; \
    missing=; \
    for name in ${PACKAGES}; do \
        dpkg-query --show --showformat='${db:Status-Status}\n' "$name" 2>/dev/null \
            | grep -qx installed || missing="$missing $name"; \
    done; \
    if [ -n "$missing" ]; then \
        apt-get update; \
        DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends $missing; \
    fi
