#!/usr/bin/env bash
# Makes target/docker/rootfs, the build context of deploy/docker/Dockerfile: the release programs and exactly the shared
# libraries that the dynamic linker resolves for them on this machine.
set -euo pipefail
cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-target}
profile=${PROFILE:-release}
context=$target/docker
root=$context/rootfs
rm -rf "$root"
mkdir -p "$root"/{usr/bin,etc,tmp,var/lib,run} "$context/state/atrium"
chmod 1777 "$root/tmp"
for program in central-server client-agent peer-node atrium; do
  install -m 0755 "$target/$profile/$program" "$root/usr/bin/$program"
  strip "$root/usr/bin/$program" 2>/dev/null || true
  ldd "$target/$profile/$program" | grep -oE '/[^ ]+' | sort -u | while read -r library; do
    mkdir -p "$root$(dirname "$library")"
    cp -L "$library" "$root$library"
  done
done
printf 'root:x:0:0:root:/:/sbin/nologin\natrium:x:65532:65532:atrium:/var/lib/atrium:/sbin/nologin\n' > "$root/etc/passwd"
printf 'root:x:0:\natrium:x:65532:\n' > "$root/etc/group"
printf 'hosts: files dns\n' > "$root/etc/nsswitch.conf"
cp deploy/docker/Dockerfile "$context/Dockerfile"
echo "$context"
