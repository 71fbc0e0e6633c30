#!/bin/bash
# Optical drives and block devices, judged by programs that are not ours: nbdinfo, nbdcopy, cmp, nbdkit's checkwrite filter,
# qemu-img, qemu-io, curl and ddrescuelog, on a real disc image in a drive that is an image file.
#
#   tests/devices/discs.sh             all checks; ends with "N passed, N failed"
#   tests/devices/discs.sh --bench     throughput beside nbdkit, plain and with TLS (a build with optimization is used)
#
# NBD_EXPORT names the built example nbd_export; without it the script builds it. As root on Debian it installs what it
# needs; otherwise it names what is missing and fails.
set -u
cd "$(dirname "$0")/../.." || exit 2

bench=
[ "${1:-}" = --bench ] && bench=1

declare -A packages=(
  [nbdinfo]=libnbd-bin [nbdcopy]=libnbd-bin [nbdkit]=nbdkit [qemu-img]=qemu-utils [qemu-io]=qemu-utils
  [genisoimage]=genisoimage [xorriso]=xorriso [ddrescuelog]=gddrescue [curl]=curl [openssl]=openssl [python3]=python3
)
missing=
for tool in "${!packages[@]}"; do
  command -v "$tool" >/dev/null || missing="$missing ${packages[$tool]}"
done
if [ -n "$missing" ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    # shellcheck disable=SC2086
    apt-get update -q >/dev/null 2>&1; DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing >/dev/null 2>&1
  fi
  for tool in "${!packages[@]}"; do
    command -v "$tool" >/dev/null || { echo "missing: $tool (apt-get install ${packages[$tool]})"; exit 2; }
  done
fi

work=$(mktemp -d "${TMPDIR:-/tmp}/discs.XXXXXX")
started=()
cleanup() {
  exec 7>&- 8>&- 2>/dev/null
  for pid in "${started[@]}"; do kill "$pid" 2>/dev/null; wait "$pid" 2>/dev/null; done
  rm -rf "$work"
}
trap cleanup EXIT

if [ -z "${NBD_EXPORT:-}" ]; then
  cargo build --quiet --release -p atrium-device --examples || exit 2
  NBD_EXPORT=${CARGO_TARGET_DIR:-target}/release/examples/nbd_export
fi

passed=0 failed=0
ok() { passed=$((passed + 1)); echo "ok    $1"; }
bad() { failed=$((failed + 1)); echo "FAIL  $1"; }
# check NAME COMMAND...: passes if the command succeeds.
check() {
  local name=$1; shift
  if "$@" >"$work/log" 2>&1; then ok "$name"; else bad "$name"; sed 's/^/      /' "$work/log" | tail -8; fi
}
# wait_for FILE PATTERN: until a line of the file matches, 20 seconds at most.
wait_for() { timeout 20 sh -c 'until grep -Eq "$2" "$1"; do sleep 0.05; done' sh "$1" "$2"; }
# start NAME ARGUMENTS...: starts an export; its lines go to $work/NAME.out, and what is written to $work/NAME.in is obeyed.
start() {
  local name=$1; shift
  mkfifo "$work/$name.in"
  "$NBD_EXPORT" "$@" <"$work/$name.in" >"$work/$name.out" 2>&1 &
  started+=($!)
}
ask() { sed -n "s/^$2 //p" "$work/$1.out" | head -1; }

# ---- a real disc

tree=$work/tree
mkdir -p "$tree/Pictures of 2019/summer" "$tree/deep/a/b/c/d/e/f/g/h/i"
head -c 3000001 /dev/urandom >"$tree/Pictures of 2019/A name with more than thirty-one characters.jpg"
head -c 700000 /dev/urandom >"$tree/Pictures of 2019/summer/Übersicht.mp4"
echo bottom >"$tree/deep/a/b/c/d/e/f/g/h/i/bottom.txt"
: >"$tree/empty"
ln -s "empty" "$tree/link"
for n in $(seq 200); do echo "$n" >"$tree/file number $n.txt"; done
size_mb=48
[ -n "$bench" ] && size_mb=1300
head -c "${size_mb}M" /dev/urandom >"$tree/film.vob"
iso=$work/disc.iso
genisoimage -quiet -input-charset utf-8 -V HOLIDAYS -R -J -joliet-long -udf -o "$iso" "$tree" || exit 2
sectors=$(($(stat -c %s "$iso") / 2048))

# ---- certificates for TLS

pki=$work/pki
mkdir "$pki"
(
  cd "$pki" || exit 1
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "/CN=office" -keyout ca.key -out ca-cert.pem
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=localhost" -keyout server-key.pem -out server.csr
  printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n' >ext
  openssl x509 -req -in server.csr -CA ca-cert.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out server-cert.pem
) >/dev/null 2>&1 || { echo "certificates could not be made"; exit 2; }

start main "$iso" --unix "$work/nbd.sock" --tcp 127.0.0.1:0 --http 127.0.0.1:0
exec 7>"$work/main.in"
start tls "$iso" --tcp 127.0.0.1:0 --tls-cert "$pki/server-cert.pem" --tls-key "$pki/server-key.pem"
exec 8>"$work/tls.in"
wait_for "$work/main.out" '^drive .*Ready' && wait_for "$work/tls.out" '^drive .*Ready' || { cat "$work"/*.out; exit 2; }
tcp=nbd://$(ask main tcp)/disc
unix="nbd+unix:///disc?socket=$work/nbd.sock"
tls="nbds://localhost:$(ask tls tcp | sed 's/.*://')/disc?tls-certificates=$pki"
http=http://$(ask main http)

# ---- benchmark

if [ -n "$bench" ]; then
  bytes=$(stat -c %s "$iso")
  # rate URI CONNECTIONS: MB/s of reading everything.
  rate() {
    local begin end
    begin=$(date +%s%N)
    nbdcopy --connections="$2" --requests=64 "$1" null: || { echo 0; return; }
    end=$(date +%s%N)
    echo $((bytes * 1000 / (end - begin)))
  }
  ours_pid=${started[0]} ours_tls_pid=${started[1]}
  nbdkit -f -U "$work/kit.sock" file "$iso" & started+=($!); kit_unix_pid=$!
  nbdkit -f -i 127.0.0.1 -p 18731 file "$iso" & started+=($!); kit_pid=$!
  nbdkit -f -i 127.0.0.1 -p 18732 --tls=require --tls-certificates="$pki" file "$iso" & started+=($!); kit_tls_pid=$!
  dd if=/dev/urandom of="$work/psk.bin" bs=32 count=1 2>/dev/null
  echo "alice:$(xxd -p -c 64 "$work/psk.bin" 2>/dev/null || od -An -vtx1 "$work/psk.bin" | tr -d ' \n')" >"$work/psk"
  chmod 600 "$work/psk"
  nbdkit -f -i 127.0.0.1 -p 18733 --tls=require --tls-psk="$work/psk" file "$iso" & started+=($!); kit_psk_pid=$!
  for port in 18731 18732 18733; do
    timeout 20 sh -c "until (exec 3<>/dev/tcp/127.0.0.1/$port) 2>/dev/null; do sleep 0.1; done" 2>/dev/null ||
      timeout 20 bash -c "until (exec 3<>/dev/tcp/127.0.0.1/$port) 2>/dev/null; do sleep 0.1; done"
  done
  cat "$iso" >/dev/null
  median() { sort -n | sed -n "$((($1 + 1) / 2))p"; }
  # Milliseconds of processor time that a process has used.
  used() { awk -v hz="$(getconf CLK_TCK)" '{print int(($14 + $15) * 1000 / hz)}' "/proc/$1/stat"; }
  # compare NAME CONNECTIONS OUR_PID OUR_URI THEIR_PID THEIR_URI: five interleaved rounds. The servers' own processor time is
  # told as well: unlike the rate it is the same when other programs want the machine, who take more from a few threads than
  # from many.
  compare() {
    local round ours theirs our_cpu their_cpu
    : >"$work/ours"; : >"$work/theirs"
    our_cpu=$(used "$3") their_cpu=$(used "$5")
    for round in 1 2 3 4 5; do
      rate "$4" "$2" >>"$work/ours"
      rate "$6" "$2" >>"$work/theirs"
    done
    our_cpu=$((($(used "$3") - our_cpu) / 5)) their_cpu=$((($(used "$5") - their_cpu) / 5))
    ours=$(median 5 <"$work/ours") theirs=$(median 5 <"$work/theirs")
    printf '%-34s %6d MB/s %5d ms   nbdkit %6d MB/s %5d ms   ratio %d.%02d   (%s | %s)\n' "$1" "$ours" "$our_cpu" "$theirs" "$their_cpu" \
      $((ours / theirs)) $((ours * 100 / theirs % 100)) "$(tr '\n' ' ' <"$work/ours")" "$(tr '\n' ' ' <"$work/theirs")"
  }
  compare "TCP, 4 connections" 4 "$ours_pid" "$tcp" "$kit_pid" nbd://127.0.0.1:18731
  compare "TCP, 1 connection" 1 "$ours_pid" "$tcp" "$kit_pid" nbd://127.0.0.1:18731
  compare "Unix socket, 4 connections" 4 "$ours_pid" "$unix" "$kit_unix_pid" "nbd+unix:///?socket=$work/kit.sock"
  compare "TLS (certificates), 4 connections" 4 "$ours_tls_pid" "$tls" "$kit_tls_pid" "nbds://localhost:18732/?tls-certificates=$pki"
  compare "TLS, nbdkit with PSK" 4 "$ours_tls_pid" "$tls" "$kit_psk_pid" "nbds://alice@127.0.0.1:18733/?tls-psk-file=$work/psk"
  exit 0
fi

# ---- judges

check "nbdinfo over TCP" nbdinfo "$tcp"
check "nbdinfo over a Unix socket" nbdinfo "$unix"
check "nbdinfo with TLS" nbdinfo "$tls"
check "nbdinfo sees size, read-only, multi-conn, structured replies" sh -c '
  nbdinfo --json "$1" | python3 -c "
import json, sys
d = json.load(sys.stdin); e = d[\"exports\"][0]
assert d[\"structured\"] and d[\"protocol\"] == \"newstyle-fixed\", d
assert e[\"export-size\"] == int(sys.argv[1]) * 2048 and e[\"is_read_only\"] and e[\"can_multi_conn\"], e
assert e[\"description\"] == \"HOLIDAYS\" and \"base:allocation\" in e[\"contexts\"], e
" "$2"' sh "$tcp" "$sectors"
check "nbdinfo --list" sh -c 'nbdinfo --list "$1" | grep -q HOLIDAYS' sh "nbd://$(ask main tcp)"
check "nbdinfo --map covers the disc" sh -c 'nbdinfo --map --totals "$1" | grep -q "$(($2 * 2048)) 100.0%"' sh "$tcp" "$sectors"
check "unknown export is refused" sh -c '! nbdinfo "$1" && nbdinfo "$1" 2>&1 | grep -q "No such file or directory for export"' sh "nbd://$(ask main tcp)/cdrom"
check "plain client at a TLS server is refused" sh -c '! nbdinfo "$1"' sh "nbd://127.0.0.1:$(ask tls tcp | sed 's/.*://')/disc"
for way in tcp unix tls; do
  check "nbdcopy and cmp ($way)" sh -c 'nbdcopy "$1" "$2/copy" && cmp "$2/copy" "$3" && rm "$2/copy"' sh "${!way}" "$work" "$iso"
done
nbdkit -f -U "$work/check.sock" --filter=checkwrite file "$iso" & started+=($!)
wait_for_socket() { timeout 20 sh -c 'until [ -S "$1" ]; do sleep 0.05; done' sh "$1"; }
wait_for_socket "$work/check.sock"
check "nbdkit checkwrite judges every byte" \
  nbdcopy --connections=4 --requests=64 "$tcp" "nbd+unix:///?socket=$work/check.sock"
check "qemu-img compare" qemu-img compare -f raw -F raw "$iso" "$unix"
check "qemu-img convert" sh -c 'qemu-img convert -f raw -O raw "$1" "$2/q" && cmp "$2/q" "$3" && rm "$2/q"' sh "$tcp" "$work" "$iso"
check "qemu-io write is refused" sh -c '
  out=$(qemu-io -r -f raw -c "write 0 512" "$1" 2>&1); echo "$out"
  echo "$out" | grep -qiE "not permitted|read.only" && ! qemu-io -f raw -c "write 0 512" "$1" 2>/dev/null' sh "$tcp"
check "qemu-img bench" qemu-img bench -f raw -c 2000 -d 16 -s 4096 "$unix"

# ---- bad input

cat >"$work/bad.py" <<'PY'
import socket, struct, sys, time
host, port = sys.argv[1].rsplit(":", 1)
GO, INFO, LIST = 7, 6, 3
failed = 0
def connect(flags=3):
    s = socket.create_connection((host, int(port)), 5); s.settimeout(5)
    assert recv(s, 18)[:16] == b"NBDMAGICIHAVEOPT"
    if flags is not None: s.sendall(struct.pack(">I", flags))
    return s
def recv(s, n):
    out = b""
    while len(out) < n:
        piece = s.recv(n - len(out))
        if not piece: raise EOFError
        out += piece
    return out
def opt(s, number, data, length=None):
    s.sendall(b"IHAVEOPT" + struct.pack(">II", number, len(data) if length is None else length) + data)
def reply(s):
    magic, _, kind, n = struct.unpack(">QIII", recv(s, 20)); recv(s, n); return kind & 0xffffffff
def closed(s):
    try: return s.recv(1) == b""
    except (ConnectionError, EOFError): return True
def go(s):
    opt(s, GO, struct.pack(">I", 4) + b"disc" + b"\0\0")
    while reply(s) != 1: pass
def req(s, cmd, offset, n, flags=0, payload=b"", magic=0x25609513):
    s.sendall(struct.pack(">IHHQQI", magic, flags, cmd, 77, offset, n) + payload)
    magic, err, cookie = struct.unpack(">IIQ", recv(s, 16)); assert magic == 0x67446698 and cookie == 77
    return err
def case(name, good):
    global failed
    t = time.time()
    try: fine = good()
    except Exception as e: fine = False; name += f" ({type(e).__name__} {e})"
    if time.time() - t > 5: fine = False; name += " (too slow)"
    print(("ok    " if fine else "FAIL  ") + "bad input: " + name); failed += not fine
E = lambda n: (1 << 31) | n
case("unknown client flags close", lambda: closed(connect(0x80)))
def magic():
    s = connect(); s.sendall(b"x" * 16); return closed(s)
case("bad option magic closes", magic)
def huge():
    s = connect(); opt(s, GO, b"", 0xffffffff); return closed(s)
case("4 GiB option closes", huge)
def unsup():
    s = connect(); opt(s, 4711, b"abc"); return reply(s) == E(1)
case("unknown option is ERR_UNSUP", unsup)
def name():
    s = connect(); opt(s, GO, struct.pack(">I", 500) + b"disc\0\0"); return reply(s) == E(3)
case("bad name length is ERR_INVALID", name)
def unknown():
    s = connect(); opt(s, GO, struct.pack(">I", 5) + b"cdrom\0\0"); return reply(s) == E(6)
case("unknown export is ERR_UNKNOWN", unknown)
def request(*a, **k):
    s = connect(); go(s); err = req(s, *a, **k)
    return err if req(s, 3, 0, 0) == 0 else -1
case("read of 2 GiB is EINVAL", lambda: request(0, 0, 2 << 30) == 22)
case("read past the end is EINVAL", lambda: request(0, 1 << 50, 512) == 22)
case("read across the end of numbers is EINVAL", lambda: request(0, (1 << 64) - 1, 512) == 22)
case("unknown command is EINVAL", lambda: request(99, 0, 0) == 22)
case("unknown flag is EINVAL", lambda: request(0, 0, 512, 0x4000) == 22)
case("write is EPERM", lambda: request(1, 0, 512, 0, b"w" * 512) == 1)
case("trim is EPERM", lambda: request(4, 0, 512) == 1)
def rmagic():
    s = connect(); go(s); s.sendall(b"\0" * 28); return closed(s)
case("bad request magic closes", rmagic)
def endless():
    s = connect(); go(s); s.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 1, 77, 0, 0xffffffff)); return closed(s)
case("4 GiB write closes", endless)
def many():
    all = [connect(None) for _ in range(40)]; s = connect(); go(s); return req(s, 3, 0, 0) == 0
case("forty silent clients do not lock others out", many)
s = connect(None); s.settimeout(15); t = time.time()
fine = closed(s) and time.time() - t < 12
print(("ok    " if fine else "FAIL  ") + "bad input: a silent client is let go"); failed += not fine
sys.exit(min(failed, 100))
PY
python3 "$work/bad.py" "$(ask main tcp)" >"$work/bad.out" 2>&1
cat "$work/bad.out"
passed=$((passed + $(grep -c '^ok' "$work/bad.out")))
failed=$((failed + $(grep -c '^FAIL' "$work/bad.out")))
grep -q 'silent client is let go' "$work/bad.out" || bad "the table of bad input ended early"
check "still alive after bad input" nbdinfo "$tcp"
pid=${started[0]}
check "memory after bad input is below 300 MiB" sh -c '[ "$(awk "/VmRSS/ {print \$2}" "/proc/$1/status")" -lt 307200 ]' sh "$pid"

# ---- players

enc='Pictures%20of%202019/summer/%C3%9Cbersicht.mp4'
check "curl gets a file" sh -c 'curl -sf "$1/files/$2" | cmp - "$3"' sh "$http" "$enc" "$tree/Pictures of 2019/summer/Übersicht.mp4"
check "curl gets a range" sh -c 'curl -sf -r 100000-199999 "$1/files/$2" | cmp - "$3"' sh "$http" "$enc" \
  <(tail -c +100001 "$tree/Pictures of 2019/summer/Übersicht.mp4" | head -c 100000)
check "curl goes on with a broken download" sh -c '
  head -c 300000 "$3" >"$4/part" && curl -sf -C - -o "$4/part" "$1/files/$2" && cmp "$4/part" "$3"' \
  sh "$http" "$enc" "$tree/Pictures of 2019/summer/Übersicht.mp4" "$work"
check "curl gets the image" sh -c 'curl -sf "$1/disc.iso" | cmp - "$2"' sh "$http" "$iso"
check "a range past the end is 416" sh -c '[ "$(curl -s -o /dev/null -w "%{http_code}" -r 999999999999- "$1/disc.iso")" = 416 ]' sh "$http"
check "a directory is a page" sh -c 'curl -sf "$1/files/" | grep -q "file number 17.txt"' sh "$http"

# ---- a disc that is pulled out in the middle of reads

# Put in anew, so that nothing of it is kept in the drive's memory.
echo eject >&7
echo close >&7
wait_for "$work/main.out" 'generation=2 Ready'
echo "slow 600000" >&7
wait_for "$work/main.out" '^ok slow'
readers=()
for n in 1 2 3 4; do
  ( nbdcopy --connections=1 --requests=4 "$tcp" null: >/dev/null 2>&1; [ $? -ne 0 ] ) &
  readers+=($!)
done
( qemu-io -r -f raw -c "read 40M 1M" "$unix" >"$work/qemu.out" 2>&1; true ) &
readers+=($!)
sleep 1
pulled=$(date +%s%N)
echo pull >&7
fine=1
for reader in "${readers[@]}"; do wait "$reader" || fine=0; done
took=$((($(date +%s%N) - pulled) / 1000000))
grep -qi "error" "$work/qemu.out" || fine=0
if [ $fine = 1 ] && [ $took -lt 5000 ]; then ok "disc pulled in mid-read: every reader has an error after $took ms"
else bad "disc pulled in mid-read ($took ms)"; cat "$work/qemu.out"; fi
wait_for "$work/main.out" '^drive .*Empty'
check "an empty drive exports nothing" sh -c '! nbdinfo "$1"' sh "$tcp"
check "players are told" sh -c '[ "$(curl -s -o /dev/null -w "%{http_code}" "$1/disc.iso")" = 503 ]' sh "$http"
echo mend >&7
echo "insert $iso" >&7
wait_for "$work/main.out" 'generation=3 Ready'
check "the disc is back as a new generation" sh -c 'nbdcopy "$1" "$2/copy" && cmp "$2/copy" "$3" && rm "$2/copy"' sh "$tcp" "$work" "$iso"

# ---- bad sectors

echo "bad 1000-1002" >&7
wait_for "$work/main.out" '^ok bad'
echo "insert $iso" >&7
wait_for "$work/main.out" 'generation=4 Ready'
check "a bad sector is an error with its reason" sh -c '
  nbdcopy "$1" null: 2>&1 | tee "$2/err"; qemu-io -r -f raw -c "read 2048000 2048" "$1" 2>&1 | grep -qi "input/output error"' sh "$tcp" "$work"
check "its neighbours can be read" sh -c 'qemu-io -r -f raw -c "read 2045952 2048" "$1" | grep -q "read 2048/2048"' sh "$tcp"
echo "random 1% 42" >&7
wait_for "$work/main.out" '^ok random'
if [ -n "${NBD_RIP:=$(dirname "$NBD_EXPORT")/nbd_rip}" ] && [ -x "$NBD_RIP" ]; then
  "$NBD_RIP" "$work/nbd.sock" disc "$work/ripped.iso" >"$work/rip.out" 2>&1
  code=$?
  cat "$work/rip.out" | tail -1
  [ $code = 1 ] && ok "a rip with bad sectors exits with 1" || bad "a rip with bad sectors exits with $code"
  check "ddrescuelog reads the map" ddrescuelog -t "$work/ripped.iso.map"
  check "the image differs only where the map says so" python3 - "$iso" "$work/ripped.iso" "$work/ripped.iso.map" <<'PY'
import sys
a, b = open(sys.argv[1], "rb"), open(sys.argv[2], "rb")
rows = [l.split() for l in open(sys.argv[3]) if not l.startswith("#")][1:]
bad = good = 0
for pos, size, status in rows:
    pos, size = int(pos, 0), int(size, 0)
    a.seek(pos); b.seek(pos)
    if status == "-": bad += size // 2048; assert b.read(size) == bytes(size)
    else: assert status == "+"; good += size // 2048; assert a.read(size) == b.read(size), pos
print(bad, "bad of", bad + good)
assert 0.005 < bad / (bad + good) < 0.02
PY
else
  bad "nbd_rip is not built beside nbd_export"
fi
echo mend >&7

# ---- a disk that is written to

truncate -s 64M "$work/disk.img"
start disk "$work/disk.img" --writable --unix "$work/disk.sock"
exec 9>"$work/disk.in"
wait_for "$work/disk.out" '^unix'
disk="nbd+unix:///disk?socket=$work/disk.sock"
check "nbdcopy writes and qemu-img compares" sh -c '
  head -c 64M /dev/urandom >"$2/random" && nbdcopy --flush "$2/random" "$1" && qemu-img compare -f raw -F raw "$2/random" "$1"' sh "$disk" "$work"
check "qemu-io writes, zeroes, trims and flushes" qemu-io -f raw -c "write -P 7 1M 1M" -c "write -z 4M 4M" -c "discard 8M 1M" \
  -c "write -f -P 9 12345 512" -c flush -c "read -P 7 1M 1M" -c "read -P 0 4M 4M" -c "read -P 9 12345 512" "$disk"
check "holes are told" sh -c 'nbdinfo --map "$1" | grep -q hole' sh "$disk"
exec 9>&-

# ---- a socket that a crash left behind

kill -9 "${started[-1]}" 2>/dev/null
wait "${started[-1]}" 2>/dev/null
python3 -c 'import socket,sys; s=socket.socket(socket.AF_UNIX); s.bind(sys.argv[1])' "$work/stale.sock"
start stale "$iso" --unix "$work/stale.sock"
exec 9>"$work/stale.in"
wait_for "$work/stale.out" '^unix'
check "a stale socket is replaced" nbdinfo "nbd+unix:///disc?socket=$work/stale.sock"
check "a living one is not" sh -c '! "$1" "$2" --unix "$3" </dev/null' sh "$NBD_EXPORT" "$iso" "$work/stale.sock"
exec 9>&-

echo
echo "$passed passed, $failed failed"
[ $failed = 0 ]
