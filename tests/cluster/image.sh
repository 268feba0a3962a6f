#!/usr/bin/env bash
# image.sh NAME:TAG ARCHIVE FILE=/PATH…: an image of these files, as an archive that containerd, kind and docker can load. The
# first file is what it runs. For images of the tests; those of the project have Dockerfiles.
set -euo pipefail
name=$1 archive=$2
shift 2

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/root/tmp" "$work/image"
chmod 1777 "$work/root/tmp"
for pair in "$@"; do
  install -D -m 755 "${pair%%=*}" "$work/root${pair#*=}"
done
entry=${1#*=}
# The same files make the same archive.
pack() { tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf "$1" -C "$2" .; }
sum() { sha256sum "$1" | cut -d ' ' -f 1; }

pack "$work/image/layer.tar" "$work/root"
cat > "$work/image/config.json" << END
{"architecture": "$(go env GOARCH 2> /dev/null || echo amd64)", "os": "linux", "config": {"Entrypoint": ["$entry"], "User": "65532:65532"},
 "rootfs": {"type": "layers", "diff_ids": ["sha256:$(sum "$work/image/layer.tar")"]}}
END
config=$(sum "$work/image/config.json").json
mv "$work/image/config.json" "$work/image/$config"
echo "[{\"Config\": \"$config\", \"RepoTags\": [\"$name\"], \"Layers\": [\"layer.tar\"]}]" > "$work/image/manifest.json"
pack "$archive.new" "$work/image"
mv "$archive.new" "$archive"
