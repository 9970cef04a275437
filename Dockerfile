# Rouse's two images:
#
#   docker build --target operator -t rouse-operator:0.1.0 .
#   docker build --target agent    -t rouse-agent:0.1.0 .
#
# A compiler cache mounted at /ccache makes a second build short; nothing depends on it. Where the network
# has a certificate authority of its own, mount its certificate and name it in the build argument PIP_CERT.

# The CUDA compiler, for the agent's kernels. Nothing of it is in the images.
FROM --platform=$BUILDPLATFORM debian:12-slim AS cuda
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3-pip \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
COPY agent/cuda/requirements.txt /tmp/requirements.txt
ARG PIP_CERT
RUN pip install --quiet --no-cache-dir --no-deps --require-hashes --only-binary=:all: \
      --no-compile --target /cuda -r /tmp/requirements.txt

# Compiles here for there: an emulated compiler takes hours.
FROM --platform=$BUILDPLATFORM debian:12-slim AS build
ARG TARGETARCH
RUN here=$(dpkg --print-architecture) && there=${TARGETARCH:-$here} \
 && dpkg --add-architecture "$there" \
 && apt-get update \
 && apt-get install -y --no-install-recommends \
      ccache cmake dpkg-dev g++ ninja-build nlohmann-json3-dev pkg-config protobuf-compiler protobuf-compiler-grpc \
      $([ "$there" = "$here" ] || echo "crossbuild-essential-$there") \
      $(for name in libcli11-dev libcpprest-dev libspdlog-dev libssl-dev libucx-dev liburing-dev libxxhash-dev \
          libyaml-cpp-dev prometheus-cpp-dev libgrpc++-dev libprotobuf-dev; do echo "$name:$there"; done) \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY CMakeLists.txt ./
COPY common common
COPY operator operator
COPY agent agent
COPY connector connector
COPY --from=cuda /cuda/nvidia/cu13 /opt/cuda
ARG ROUSE_COMMIT=unknown
ARG JOBS=2
# The same folders relative to the tree as `make build` has, so that both can share one compiler cache.
RUN export LANG=C.UTF-8 CCACHE_DIR=/ccache CCACHE_BASEDIR=/src CCACHE_NOHASHDIR=1 CCACHE_COMPILERCHECK=content \
 && here=$(dpkg --print-architecture) && there=${TARGETARCH:-$here} \
 && cross= \
 && if [ "$there" != "$here" ]; then \
      triple=$(dpkg-architecture -a "$there" -q DEB_HOST_GNU_TYPE); \
      cross="-DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=${triple%%-*}"; \
      cross="$cross -DCMAKE_C_COMPILER=$triple-gcc -DCMAKE_CXX_COMPILER=$triple-g++"; \
      export PKG_CONFIG_LIBDIR=/usr/lib/$triple/pkgconfig:/usr/share/pkgconfig; \
    fi \
 && cmake $cross -S . -B build/release -G Ninja -DCMAKE_BUILD_TYPE=Release -DROUSE_JOIN_SOURCES=ON -DROUSE_BUILD_TESTS=OFF \
      -DROUSE_CUDA_ROOT=/opt/cuda \
      -DROUSE_COMMIT="$ROUSE_COMMIT" -DCMAKE_C_COMPILER_LAUNCHER=ccache -DCMAKE_CXX_COMPILER_LAUNCHER=ccache \
 && cmake --build build/release --parallel "$JOBS" --target rouse-operator rouse-agent rouse_connector \
 && cmake --install build/release --prefix /out --component operator --strip \
 && cmake --install build/release --prefix /out --component agent --strip \
 && cmake --install build/release --prefix /out --component plugin --strip

# What both programs need at run time.
FROM debian:12-slim AS runtime
RUN apt-get update \
 && apt-get install -y --no-install-recommends \
      ca-certificates libcpprest2.10 libfmt9 libprometheus-cpp-core1.0 libspdlog1.10 libssl3 \
 && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/* \
 && echo 'rouse:x:2000:' >> /etc/group \
 && echo 'rouse:x:2000:2000::/nonexistent:/usr/sbin/nologin' >> /etc/passwd

FROM runtime AS operator
RUN apt-get update \
 && apt-get install -y --no-install-recommends libgrpc++1.51 libprotobuf32 libyaml-cpp0.7 \
 && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/*
COPY --from=build /out/bin/rouse-operator /usr/bin/rouse-operator
# A library that is missing shows here, not in the cluster.
RUN rouse-operator --version
USER 2000:2000
EXPOSE 7480 7481 7482
ENTRYPOINT ["/usr/bin/rouse-operator"]

FROM runtime AS agent
RUN apt-get update \
 && apt-get install -y --no-install-recommends ibverbs-providers libucx0 liburing2 libxxhash0 \
 && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/*
COPY --from=build /out/share/rouse/plugin /usr/share/rouse/plugin
COPY --from=build /out/bin/rouse-agent /usr/bin/rouse-agent
RUN rouse-agent --version
USER 2000:2000
EXPOSE 7410 7411
ENTRYPOINT ["/usr/bin/rouse-agent"]
