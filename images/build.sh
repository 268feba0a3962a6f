#!/usr/bin/env bash
# Builds images: build.sh [NAME...], of chatgateway-operator, chatgateway-dataplane (both, where none is named) and
# chatgateway-model-sim. Each gets a static program, its list of parts (CycloneDX, in /sbom) and labels, and nothing else. An archive of
# each is left in target/images, for `kind load image-archive` and `ctr images import`.
#   IMAGE_TOOL     docker, podman or buildah (default: the first of them that works)
#   IMAGE_TAG      the images' tag (default: the release's version)
#   IMAGE_SOURCE   where the sources are, for the label (default: none)
#   IMAGE_TARGET   what Rust builds for (default: this machine, with a C library that is linked in)
set -euo pipefail
cd "$(dirname "$0")/.."

# The largest an image may be, in MB.
declare -A largest=([chatgateway-operator]=35 [chatgateway-dataplane]=25 [chatgateway-model-sim]=25)
declare -A packages=([chatgateway-operator]=operator [chatgateway-dataplane]=dataplane [chatgateway-model-sim]=tests)
declare -A programs=([chatgateway-operator]=chatgateway-operator [chatgateway-dataplane]=chatgateway-dataplane [chatgateway-model-sim]=model-sim)
cyclonedx=0.5.9

say() { echo "images: $*" >&2; }
stop() { say "$*"; exit 1; }

names=("$@")
[ ${#names[@]} -gt 0 ] || names=(chatgateway-operator chatgateway-dataplane)
for name in "${names[@]}"; do
  [ -n "${programs[$name]:-}" ] || stop "$name: no such image; there are: ${!programs[*]}"
done

works() {
  case $1 in
    docker) docker info > /dev/null 2>&1 ;;
    podman) podman info > /dev/null 2>&1 ;;
    buildah) buildah info > /dev/null 2>&1 ;;
    *) stop "IMAGE_TOOL is $1; it can be docker, podman or buildah" ;;
  esac
}
tool=${IMAGE_TOOL:-}
if [ -z "$tool" ]; then
  for one in docker podman buildah; do
    if works "$one"; then tool=$one && break; fi
  done
fi
[ -n "$tool" ] || stop 'needs docker, podman or buildah, and none works. Debian, Ubuntu: apt-get install buildah'
works "$tool" || stop "$tool does not work: see \`$tool info\`"

version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
tag=${IMAGE_TAG:-$version}
target=${IMAGE_TARGET:-$(rustc -vV | sed -n 's/^host: //p')}
case $target in
  *-linux-gnu)
    # Older ones look for parts of themselves, to resolve names, that are not in the image.
    libc=$(ldd --version 2>&1 | sed -n '1s/.* //p')
    [ "$(printf '%s\n' 2.34 "$libc" | sort -V | head -1)" = 2.34 ] || stop "needs glibc 2.34 or later to link it in, and this is $libc"
    ;;
  *-linux-musl) ;;
  *) stop "builds programs for Linux, not for $target: set IMAGE_TARGET, with a linker for it" ;;
esac
folder=${CARGO_TARGET_DIR:-target}
arguments=()
for name in "${names[@]}"; do arguments+=(--bin "${programs[$name]}"); done
say "building ${names[*]} for $target ..."
RUSTFLAGS="${RUSTFLAGS:-} -C target-feature=+crt-static" cargo build --release --locked --quiet --target "$target" "${arguments[@]}"

# cargo-cyclonedx: installed once for each version, where nothing else looks for it.
tools=${XDG_CACHE_HOME:-$HOME/.cache}/chatgateway/cargo-cyclonedx/$cyclonedx
if [ ! -x "$tools/bin/cargo-cyclonedx" ]; then
  say "installing cargo-cyclonedx $cyclonedx (some minutes, once) ..."
  cargo install --quiet --locked --root "$tools" "cargo-cyclonedx@$cyclonedx"
fi

# The parts of a program, from the lock file.
list_parts() {
  local package=$1 file=$2
  "$tools/bin/cargo-cyclonedx" cyclonedx --quiet --format json --target "$target" --manifest-path "$package/Cargo.toml" \
    --override-filename "image-parts"
  mv "$package/image-parts.json" "$file"
  # It also writes a list beside every other member of the workspace.
  git ls-files '*Cargo.toml' | while read -r manifest; do rm -f "$(dirname "$manifest")/image-parts.json"; done
}

strip_program() {
  local strip=strip
  command -v "$strip" > /dev/null || stop 'needs strip, of binutils'
  # Names of functions stay, for stack traces; lines and types go.
  "$strip" --strip-debug -o "$2" "$1"
}

revision=$(git rev-parse HEAD 2> /dev/null || true)
labels=(--label "org.opencontainers.image.version=$version")
[ -z "$revision" ] || labels+=(--label "org.opencontainers.image.revision=$revision")
[ -z "${IMAGE_SOURCE:-}" ] || labels+=(--label "org.opencontainers.image.source=$IMAGE_SOURCE")

for name in "${names[@]}"; do
  program=${programs[$name]}
  context=$folder/images/$name
  rm -rf "$context"
  mkdir -p "$context"
  strip_program "$folder/$target/release/$program" "$context/$program"
  if readelf -lW "$context/$program" | grep -q INTERP; then stop "$program is not static"; fi
  list_parts "${packages[$name]}" "$context/$program.cdx.json"
  size=$(du -sb "$context" | cut -f1)
  [ "$size" -le $((largest[$name] * 1000 * 1000)) ] || stop "$name is $((size / 1000 / 1000)) MB large, above its ${largest[$name]} MB"
  archive=$folder/images/$name.tar
  rm -f "$archive"
  case $tool in
    docker | podman)
      "$tool" build --quiet "${labels[@]}" --file "images/$name.Dockerfile" --tag "$name:$tag" "$context" > /dev/null
      "$tool" save --output "$archive" "$name:$tag"
      ;;
    buildah)
      buildah build --quiet --isolation chroot "${labels[@]}" --file "images/$name.Dockerfile" --tag "$name:$tag" "$context" > /dev/null
      buildah push --quiet "$name:$tag" "docker-archive:$archive:$name:$tag"
      ;;
  esac
  say "$name:$tag, $((size / 1000 / 1000)) MB, also in $archive"
done
