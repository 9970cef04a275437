# Rouse's two images:
#
#   docker build --target operator -t rouse-operator:0.1.0 .
#   docker build --target agent    -t rouse-agent:0.1.0 .
#
# A compiler cache mounted at /ccache makes a second build short; nothing depends on it. Where the network
# has a certificate authority of its own, mount its certificate and name it in the build argument PIP_CERT.
# Everything runs on the building machine's architecture, and nothing in the last stages, so that images for
# others need no emulation by the kernel, and come out the same each time: docs/images.md.

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
 && cmake --install build/release --prefix /out/operator/usr --component operator --strip \
 && cmake --install build/release --prefix /out/agent/usr --component agent --strip \
 && cmake --install build/release --prefix /out/agent/usr --component plugin --strip \
 && for each in operator agent; do \
      mkdir -p /out/$each/usr/share/rouse \
      && cp --parents /usr/share/doc/libcli11-dev/copyright /usr/share/doc/nlohmann-json3-dev/copyright /out/$each; done \
 && dpkg-query --show --showformat='pkg:deb/debian/${Package}@${Version}\n' libcli11-dev nlohmann-json3-dev \
    | tee /out/operator/usr/share/rouse/compiled-in > /out/agent/usr/share/rouse/compiled-in \
 && sed -n 's|^\(nvidia-[a-z-]*\)==\([0-9.]*\).*|pkg:pypi/\1@\2|p' agent/cuda/requirements.txt \
    >> /out/agent/usr/share/rouse/compiled-in

# What the programs need at run time, as folders: packages of there, unpacked here.
FROM --platform=$BUILDPLATFORM debian:12-slim AS roots
ARG TARGETARCH
COPY config/images /images
RUN here=$(dpkg --print-architecture) && there=${TARGETARCH:-$here} \
 && apt-get update \
 && if [ "$there" != "$here" ]; then apt-get install -y --no-install-recommends qemu-user-static; fi \
 && apt-get -o APT::Architecture="$there" -o APT::Architectures="$there" update \
 && /images/unpack.sh "$there" /roots/both "" \
      base-files libcpprest2.10 libfmt9 libprometheus-cpp-core1.0 libspdlog1.10 libssl3 \
 && echo 'hosts: files dns' > /roots/both/etc/nsswitch.conf \
 && echo 'root:x:0:\nrouse:x:2000:' > /roots/both/etc/group \
 && echo 'root:x:0:0::/:/usr/sbin/nologin\nrouse:x:2000:2000::/:/usr/sbin/nologin' > /roots/both/etc/passwd \
 && /images/unpack.sh "$there" /roots/operator /roots/both libgrpc++1.51 libprotobuf32 libyaml-cpp0.7 \
 && /images/unpack.sh "$there" /roots/agent /roots/both ibverbs-providers libucx0 liburing2 libxxhash0 \
 && rm -rf /var/lib/apt/lists/*
COPY LICENSE /roots/both/usr/share/doc/rouse/copyright
COPY --from=build /out /out
# A library that is missing shows here, not in the cluster.
RUN there=${TARGETARCH:-$(dpkg --print-architecture)} \
 && /images/start.sh "$there" /roots/both /roots/operator /out/operator -- /usr/bin/rouse-operator --version \
 && /images/start.sh "$there" /roots/both /roots/agent /out/agent -- /usr/bin/rouse-agent --version

# Neither a shell nor a package manager is in the images.
FROM scratch AS operator
COPY --from=roots /roots/both /
COPY --from=roots /roots/operator /
COPY --from=roots /out/operator /
USER 2000:2000
EXPOSE 7480 7481 7482
ENTRYPOINT ["/usr/bin/rouse-operator"]

FROM scratch AS agent
COPY --from=roots /roots/both /
COPY --from=roots /roots/agent /
COPY --from=roots /out/agent /
USER 2000:2000
EXPOSE 7410 7411
ENTRYPOINT ["/usr/bin/rouse-agent"]
